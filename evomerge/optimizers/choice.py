"""`optimizer: {kind: auto}`: which algorithm suits a search, and why, by rules that one can read."""

from __future__ import annotations

from typing import NamedTuple

from evomerge.optimizers.registry import AlgorithmKind, OptimizerSettings

FEW_EVALUATIONS = 100  # a Gaussian process is still cheap, and a population has hardly moved
MOST_GENES_OF_A_PROCESS = 20
MOST_GENES_OF_A_FRONT = 100  # crossover and mutation need more evaluations per gene than a learnt distribution
MOST_OBJECTIVES_OF_A_FRONT = 4
FEWEST_EVALUATIONS_OF_A_FRONT = 200


class Choice(NamedTuple):
    """An algorithm and one sentence that says why."""

    kind: AlgorithmKind
    reason: str


def choose(*, genes: int, objectives: int, budget: int) -> Choice:
    """Return the algorithm for a space of ``genes``, so many ``objectives`` and a ``budget`` of evaluations."""
    if budget <= FEW_EVALUATIONS and genes <= MOST_GENES_OF_A_PROCESS:
        return Choice(
            "gp",
            f"{budget} evaluations are few (at most {FEW_EVALUATIONS}) and {genes} genes are within the "
            f"{MOST_GENES_OF_A_PROCESS} that a Gaussian process can model.",
        )
    if (
        1 < objectives <= MOST_OBJECTIVES_OF_A_FRONT
        and genes <= MOST_GENES_OF_A_FRONT
        and budget >= FEWEST_EVALUATIONS_OF_A_FRONT
    ):
        return Choice(
            "nsga2",
            f"{objectives} objectives have a front to spread over, and {budget} evaluations of {genes} genes suffice "
            f"(at least {FEWEST_EVALUATIONS_OF_A_FRONT}, at most {MOST_GENES_OF_A_FRONT} genes).",
        )
    aims = "one objective has" if objectives == 1 else f"{objectives} objectives are searched by their weighted mean, "
    goal = f"{aims} one optimum" if objectives == 1 else f"{aims}which has one optimum"
    return Choice("cma_es", f"{goal}, and CMA-ES is the one for {genes} genes and {budget} evaluations.")


def resolve(settings: OptimizerSettings, choice: Choice | None) -> OptimizerSettings:
    """Return ``settings`` with the algorithm of ``choice`` in the place of `auto`.

    Raises:
        ValueError: `auto`, and nothing was chosen.
    """
    if settings.kind != "auto":
        return settings
    if choice is None:
        raise ValueError("optimizer.kind is auto: expected the choice that the search began with, got none")
    return settings.model_copy(update={"kind": choice.kind})
