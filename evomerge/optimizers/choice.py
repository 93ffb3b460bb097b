"""`optimizer: {kind: auto}`: which algorithm suits a search, and why, by rules that one can read."""

from __future__ import annotations

from typing import Any, NamedTuple

from evomerge.optimizers.setting import Setting
from evomerge.optimizers.settings import Algorithm, AlgorithmKind, AutoSettings, algorithm

# On experts (24 genes) `gp` has with 100 evaluations what CMA-ES has with 300, and CMA-ES with a process before it is
# ahead of CMA-ES by itself from 50 to 250 evaluations (docs/search-quality.md).
FEW_EVALUATIONS = 100  # a Gaussian process is still cheap, and a population has hardly moved
MOST_GENES_OF_A_PROCESS = 30
FORESIGHT = {"preselect": 20, "correlation": 0.3}
MOST_GENES_OF_FORESIGHT = 99  # from 100 on CMA-ES learns no correlations
MOST_OBJECTIVES_OF_A_FRONT = 4
# Below this the weighted mean's optimum, found by CMA-ES, covers more of the front than NSGA-II does: on two bowls of
# 5, 10 and 30 genes they crossed between 40 and 100, 20 and 50, 33 and 100 evaluations a gene (docs/optimizers.md).
EVALUATIONS_PER_GENE_OF_A_FRONT = 60


class Choice(NamedTuple):
    """An algorithm, one sentence that says why, and what is set beside its defaults (records may lack it)."""

    kind: AlgorithmKind
    reason: str
    settings: dict[str, Any] | None = None


def choose(setting: Setting) -> Choice:
    """Return the algorithm for a search of ``setting``."""
    choice = _kind(setting)
    if choice.kind == "cma_es" and len(setting.genes) <= MOST_GENES_OF_FORESIGHT and not setting.centres:
        return choice._replace(
            reason=f"{choice.reason} A Gaussian process chooses which of its points are evaluated.", settings=FORESIGHT
        )
    return choice


def _kind(setting: Setting) -> Choice:
    genes, budget = setting.genes, setting.evaluations
    if setting.mosaics is not None:
        return Choice("natural_niches", f"mosaics are bred, whatever the budget (here {budget} evaluations).")
    whole = sum(gene.kind != "real" for gene in genes.genes)
    if budget <= FEW_EVALUATIONS and len(genes) <= MOST_GENES_OF_A_PROCESS and not whole:
        return Choice(
            "gp",
            f"{budget} evaluations are few (at most {FEW_EVALUATIONS}) and {len(genes)} genes are within the "
            f"{MOST_GENES_OF_A_PROCESS} that a Gaussian process can model.",
        )
    front = _of_the_front(len(genes), len(setting.weights), budget)
    if front is not None and front.kind == "nsga2":
        return front
    if whole:
        return Choice(
            "cat_cma",
            f"{whole} of {len(genes)} genes are whole numbers or categories, and {budget} evaluations go to one best.",
        )
    return front or Choice("cma_es", f"CMA-ES suits {_aim(setting)}, {len(genes)} genes and {budget} evaluations.")


def _of_the_front(genes: int, objectives: int, budget: int) -> Choice | None:
    """Return whether two to four objectives are better served by a front or by their weighted mean."""
    if not 1 < objectives <= MOST_OBJECTIVES_OF_A_FRONT:
        return None
    enough = EVALUATIONS_PER_GENE_OF_A_FRONT * genes
    if budget >= enough:
        return Choice(
            "nsga2",
            f"{objectives} objectives have a front to spread over, and {budget} evaluations suffice for it with "
            f"{genes} genes (at least {enough}).",
        )
    return Choice(
        "cma_es",
        f"{budget} evaluations are too few to spread over the front of {objectives} objectives with {genes} genes "
        f"(fewer than {enough}), so their weighted mean is searched.",
    )


def _aim(setting: Setting) -> str:
    objectives = len(setting.weights)
    return "one objective" if objectives == 1 else f"the weighted mean of {objectives} objectives"


def resolve(settings: AutoSettings | Algorithm, choice: Choice | None) -> Algorithm:
    """Return ``settings`` with the algorithm of ``choice``, as it is set there, in the place of `auto`.

    Raises:
        ValueError: `auto`, and nothing was chosen.
    """
    if not isinstance(settings, AutoSettings):
        return settings
    if choice is None:
        raise ValueError("optimizer.kind is auto: expected the choice that the search began with, got none")
    return algorithm(choice.kind, seed=settings.seed, **(choice.settings or {}))
