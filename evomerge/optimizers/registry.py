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
        case CmaEsSettings(sigma=sigma, population=population):
            from evomerge.optimizers.cma_es import CmaEs

            return CmaEs(genes, weights=weights, seed=seed, sigma=sigma, population=population)
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
        case NaturalNichesSettings(archive=archive, alpha=alpha, attraction=attraction, warm_up=warm_up):
            from evomerge.optimizers.natural_niches import NaturalNiches

            return NaturalNiches(
                _breeder(setting, split=algorithm.split),
                weights=weights,
                seed=seed,
                archive=archive,
                alpha=alpha,
                attraction=attraction,
                warm_up=warm_up,
            )
        case MapElitesSettings(cells=cells, warm_up=warm_up):
            from evomerge.optimizers.map_elites import MapElites

            breeder = _breeder(setting, split=algorithm.split)
            return MapElites(breeder, weights=weights, seed=seed, cells=cells, warm_up=warm_up)
    assert_never(algorithm)


def _breeder(setting: Setting, *, split: bool) -> Breeder:
    if setting.mosaics is not None:
        return MosaicBreeder(setting.mosaics, split=split)
    return GeneBreeder(setting.genes, split=split)
