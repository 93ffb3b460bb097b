"""From the `optimizer` section of a search file to an optimizer."""

from __future__ import annotations

from typing import assert_never

from evomerge.optimizers.breeding import Breeder, GeneBreeder
from evomerge.optimizers.contract import Optimizer
from evomerge.optimizers.mosaic_breeder import MosaicBreeder
from evomerge.optimizers.setting import Setting
from evomerge.optimizers.settings import (
    BREEDERS,
    Algorithm,
    BayesianMapSettings,
    CatCmaSettings,
    CmaEsSettings,
    CycleQdSettings,
    GpSettings,
    MapElitesSettings,
    MapSettings,
    NaturalNichesSettings,
    NestedMapSettings,
    Nsga2Settings,
    Nsga3Settings,
    OptimizerPlugIn,
    RandomSettings,
    SobolSettings,
    TpeSettings,
    TwoStageSettings,
)
from evomerge.optimizers.suitability import check_suits

__all__ = ["Setting", "make_optimizer"]


def make_optimizer(algorithm: Algorithm, setting: Setting) -> Optimizer:  # noqa: C901  one case an algorithm
    """Return the optimizer that ``algorithm`` describes.

    Raises:
        ValueError: it cannot search such a space.
    """
    # Libraries are imported by the branch that needs them: SciPy and Optuna take a second.
    check_suits(algorithm, setting)
    genes, weights, seed = setting.genes, setting.weights, algorithm.seed
    if setting.mosaics is not None and algorithm.kind not in BREEDERS:
        raise ValueError(f"optimizer {algorithm.kind} cannot search mosaics; use {' or '.join(BREEDERS)}")
    match algorithm:
        case CmaEsSettings():
            from evomerge.optimizers.cma_es import CmaEs

            return CmaEs(
                genes,
                weights=weights,
                aim=setting.aim,
                seed=seed,
                sigma=algorithm.sigma,
                population=algorithm.population,
                separable=algorithm.separable,
                correlation=algorithm.correlation,
                preselect=algorithm.preselect,
                centres=setting.centres,
                noisy=setting.noisy,
            )
        case TwoStageSettings(first_stage=first_stage, penalty=penalty):
            from evomerge.optimizers.two_stage import TwoStage

            return TwoStage(genes, weights=weights, seed=seed, first_stage=first_stage, penalty=penalty)
        case Nsga2Settings(population=population):
            from evomerge.optimizers.nsga2 import Nsga2

            return Nsga2(genes, seed=seed, population=population)
        case Nsga3Settings(population=population):
            from evomerge.optimizers.nsga3 import Nsga3

            return Nsga3(genes, objectives=len(weights), seed=seed, population=population)
        case MapSettings(design=design, batch=batch):
            from evomerge.optimizers.map_search import MapSearch

            return MapSearch(genes, seed=seed, design=design, batch=batch)
        case BayesianMapSettings(design=design, batch=batch):
            from evomerge.optimizers.bayesian_map import BayesianMap

            return BayesianMap(genes, seed=seed, design=design, batch=batch)
        case NestedMapSettings(evaluations_per_pair=evaluations):
            from evomerge.optimizers.nested_map import NestedMap

            return NestedMap(genes, preference=setting.preference(), seed=seed, evaluations_per_pair=evaluations)
        case CycleQdSettings(bins=bins):
            from evomerge.optimizers.cycle_qd import CycleQd

            return CycleQd(genes, weights=weights, seed=seed, bins=bins)
        case CatCmaSettings(population=population):
            from evomerge.optimizers.cat_cma import CatCma

            return CatCma(genes, preference=setting.preference(), seed=seed, population=population)
        case TpeSettings():
            from evomerge.optimizers.optuna_samplers import tpe

            return tpe(genes, objectives=len(weights), seed=seed)
        case GpSettings():
            from evomerge.optimizers.optuna_samplers import gp

            return gp(genes, preference=setting.preference(), seed=seed)
        case RandomSettings():
            from evomerge.optimizers.random_search import RandomSearch

            return RandomSearch(genes, seed=seed)
        case SobolSettings():
            from evomerge.optimizers.sobol import SobolSearch

            return SobolSearch(genes, seed=seed)
        case NaturalNichesSettings() | MapElitesSettings():
            return _make_breeding(algorithm, setting)
        case OptimizerPlugIn():
            return _plugged(algorithm, setting)
    assert_never(algorithm)


def _plugged(algorithm: OptimizerPlugIn, setting: Setting) -> Optimizer:
    made = algorithm.make(setting)
    if not isinstance(made, Optimizer):
        raise ValueError(f"optimizer {algorithm.kind}: expected ask and tell, got {type(made).__name__}")
    return made


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
