"""From the `optimizer` section of a search file to an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from evomerge.optimizers.breeding import Breeder, GeneBreeder
from evomerge.optimizers.contract import Optimizer
from evomerge.optimizers.mosaic_breeder import MosaicBreeder
from evomerge.optimizers.settings import (
    BREEDERS,
    Algorithm,
    CmaEsSettings,
    GpSettings,
    MapElitesSettings,
    NaturalNichesSettings,
    Nsga2Settings,
    RandomSettings,
    SobolSettings,
    TpeSettings,
    TwoStageSettings,
)
from search_spaces.genes import Genes, Vector
from search_spaces.mosaic import MosaicAlgebra


@dataclass(frozen=True)
class Setting:
    """What an optimizer is told of the search when it is made.

    Attributes:
        weights: (objectives,) importance of each objective.
        evaluations: the budget.
        mosaics: where mosaics are searched, what crosses them; the genes then only describe them.
    """

    genes: Genes
    weights: Vector
    evaluations: int
    mosaics: MosaicAlgebra | None = None


def make_optimizer(algorithm: Algorithm, setting: Setting) -> Optimizer:
    """Return the optimizer that ``algorithm`` describes.

    Raises:
        ValueError: it cannot search such a space.
    """
    # Libraries are imported by the branch that needs them: SciPy and Optuna take a second.
    genes, weights, seed = setting.genes, setting.weights, algorithm.seed
    if setting.mosaics is not None and algorithm.kind not in BREEDERS:
        raise ValueError(f"optimizer {algorithm.kind} cannot search mosaics; use {' or '.join(BREEDERS)}")
    match algorithm:
        case CmaEsSettings():
            from evomerge.optimizers.cma_es import CmaEs

            return CmaEs(
                genes,
                weights=weights,
                seed=seed,
                sigma=algorithm.sigma,
                population=algorithm.population,
                separable=algorithm.separable,
            )
        case TwoStageSettings(first_stage=first_stage, penalty=penalty):
            from evomerge.optimizers.two_stage import TwoStage

            return TwoStage(genes, weights=weights, seed=seed, first_stage=first_stage, penalty=penalty)
        case Nsga2Settings(population=population):
            from evomerge.optimizers.nsga2 import Nsga2

            return Nsga2(genes, seed=seed, population=population)
        case TpeSettings():
            from evomerge.optimizers.optuna_samplers import tpe

            return tpe(genes, objectives=len(weights), seed=seed)
        case GpSettings():
            from evomerge.optimizers.optuna_samplers import gp

            return gp(genes, weights=weights, seed=seed)
        case RandomSettings():
            from evomerge.optimizers.random_search import RandomSearch

            return RandomSearch(genes, seed=seed)
        case SobolSettings():
            from evomerge.optimizers.sobol import SobolSearch

            return SobolSearch(genes, seed=seed)
        case NaturalNichesSettings() | MapElitesSettings():
            return _make_breeding(algorithm, setting)
    assert_never(algorithm)


def _make_breeding(algorithm: NaturalNichesSettings | MapElitesSettings, setting: Setting) -> Optimizer:
    """Return an optimizer that breeds an archive."""
    weights, seed, warm_up = setting.weights, algorithm.seed, algorithm.warm_up
    breeder = _breeder(setting, split=algorithm.split)
    if isinstance(algorithm, MapElitesSettings):
        from evomerge.optimizers.map_elites import MapElites

        return MapElites(breeder, weights=weights, seed=seed, cells=algorithm.cells, warm_up=warm_up)
    from evomerge.optimizers.natural_niches import NaturalNiches

    return NaturalNiches(
        breeder,
        weights=weights,
        seed=seed,
        archive=algorithm.archive,
        alpha=algorithm.alpha,
        attraction=algorithm.attraction,
        warm_up=warm_up,
    )


def _breeder(setting: Setting, *, split: bool) -> Breeder:
    if setting.mosaics is not None:
        return MosaicBreeder(setting.mosaics, split=split)
    return GeneBreeder(setting.genes, split=split)
