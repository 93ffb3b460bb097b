"""From the `optimizer` section of a search file to an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from evomerge.optimizers.contract import Optimizer
from evomerge.optimizers.settings import (
    Algorithm,
    CmaEsSettings,
    GpSettings,
    Nsga2Settings,
    RandomSettings,
    SobolSettings,
    TpeSettings,
    TwoStageSettings,
)
from search_spaces.genes import Genes, Vector


@dataclass(frozen=True)
class Setting:
    """What an optimizer is told of the search when it is made.

    Attributes:
        weights: (objectives,) importance of each objective.
        evaluations: the budget.
    """

    genes: Genes
    weights: Vector
    evaluations: int


def make_optimizer(algorithm: Algorithm, setting: Setting) -> Optimizer:
    """Return the optimizer that ``algorithm`` describes.

    Raises:
        ValueError: it cannot search such a space.
    """
    # Libraries are imported by the branch that needs them: SciPy and Optuna take a second.
    genes, weights, seed = setting.genes, setting.weights, algorithm.seed
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
    assert_never(algorithm)
