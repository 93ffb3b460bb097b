"""From the `optimizer` section of a search file to an optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.optimizers.contract import Optimizer
from search_spaces.genes import Genes, Vector

OptimizerKind = Literal["cma_es", "nsga2", "random", "sobol"]


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
        ValueError: the optimizer cannot search a space of so many genes.
    """
    if settings.kind == "random":
        from evomerge.optimizers.random_search import RandomSearch

        return RandomSearch(genes, seed=settings.seed)
    if settings.kind == "sobol":
        from evomerge.optimizers.sobol import SobolSearch

        return SobolSearch(genes, seed=settings.seed)
    if settings.kind == "nsga2":
        from evomerge.optimizers.nsga2 import Nsga2

        return Nsga2(genes, seed=settings.seed, population=settings.population)
    from evomerge.optimizers.cma_es import CmaEs

    return CmaEs(genes, weights=weights, seed=settings.seed, sigma=settings.sigma, population=settings.population)
