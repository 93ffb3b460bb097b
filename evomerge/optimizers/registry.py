"""From the `optimizer` section of a search file to an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.optimizers.contract import Optimizer
from search_spaces.genes import Genes, Vector

AlgorithmKind = Literal["cma_es", "nsga2", "tpe", "gp", "random", "sobol"]
OptimizerKind = Literal["cma_es", "nsga2", "tpe", "gp", "random", "sobol", "auto"]


class OptimizerSettings(BaseModel):
    """The `optimizer` section of a search file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: OptimizerKind = "cma_es"
    seed: int = Field(default=0, ge=0, lt=2**63)
    sigma: float = Field(default=0.2, gt=0.0, le=1.0, description="CMA-ES: first step, as a share of each gene's range")
    population: int | None = Field(default=None, ge=4, description="CMA-ES: 4 + 3 ln(genes) by default; NSGA-II: 30")


def make_optimizer(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    """Return the optimizer that ``settings`` names, for objectives with these (objectives,) ``weights``.

    Raises:
        ValueError: the optimizer cannot search a space of so many genes, or `auto` was not resolved.
    """
    if settings.kind == "auto":
        raise ValueError("optimizer.kind is auto, which names no algorithm: resolve it first (optimizers/choice.py)")
    return _MAKERS[settings.kind](settings, genes, weights)


# Libraries are imported by the maker that needs them: SciPy and Optuna take a second.


def _cma_es(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    from evomerge.optimizers.cma_es import CmaEs

    return CmaEs(genes, weights=weights, seed=settings.seed, sigma=settings.sigma, population=settings.population)


def _nsga2(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    from evomerge.optimizers.nsga2 import Nsga2

    return Nsga2(genes, seed=settings.seed, population=settings.population)


def _tpe(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    from evomerge.optimizers.optuna_samplers import tpe

    return tpe(genes, objectives=len(weights), seed=settings.seed)


def _gp(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    from evomerge.optimizers.optuna_samplers import gp

    return gp(genes, weights=weights, seed=settings.seed)


def _random(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    from evomerge.optimizers.random_search import RandomSearch

    return RandomSearch(genes, seed=settings.seed)


def _sobol(settings: OptimizerSettings, genes: Genes, weights: Vector) -> Optimizer:
    from evomerge.optimizers.sobol import SobolSearch

    return SobolSearch(genes, seed=settings.seed)


_MAKERS: dict[AlgorithmKind, Callable[[OptimizerSettings, Genes, Vector], Optimizer]] = {
    "cma_es": _cma_es,
    "nsga2": _nsga2,
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "sobol": _sobol,
}
