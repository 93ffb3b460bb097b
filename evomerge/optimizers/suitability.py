"""Which algorithm can search which space with which budget; said before anything is spent."""

from __future__ import annotations

from evomerge.optimizers.preference import WEIGHTED_MEAN
from evomerge.optimizers.setting import Setting
from evomerge.optimizers.settings import Algorithm, AlgorithmKind, BayesianMapSettings, MapSettings, NestedMapSettings
from search_spaces.genes import Genes

REAL_ONLY: tuple[AlgorithmKind, ...] = (
    "cma_es", "two_stage", "map", "bayesian_map", "nested_map", "cycle_qd", "natural_niches", "map_elites",
)  # fmt: skip
MOST_GENES_OF_BINS = 6  # the angles of bayesian_map have 2^(genes - 1) bins


def check_suits(algorithm: Algorithm, setting: Setting) -> None:
    """Refuse an algorithm that cannot search such a space for so many objectives within the budget.

    Raises:
        ValueError: why, and what can.
    """
    kind, genes, evaluations = algorithm.kind, setting.genes, setting.evaluations
    whole = [gene for gene in genes.genes if gene.kind != "real"]
    if whole and kind in REAL_ONLY:
        raise ValueError(
            f"optimizer {kind} searches real genes only, but {whole[0].name} is {whole[0].kind}; use cat_cma or nsga2"
        )
    if kind == "cycle_qd" and len(setting.weights) < 2:
        raise ValueError("optimizer cycle_qd expects two or more objectives, got 1; use cma_es")
    if kind == "bayesian_map" and len(genes) > MOST_GENES_OF_BINS:
        raise ValueError(
            f"optimizer bayesian_map expects at most {MOST_GENES_OF_BINS} genes, got {len(genes)}; use map, or fewer "
            "layer and tensor groups"
        )
    if kind == "two_stage" and setting.aim != WEIGHTED_MEAN:
        raise ValueError("optimizer two_stage climbs the weighted mean only; leave out preference, or use cma_es")
    if isinstance(algorithm, MapSettings | BayesianMapSettings):
        _check_coefficients(kind, len(genes), evaluations)
    if isinstance(algorithm, NestedMapSettings):
        _check_pairs(algorithm, genes, evaluations)


def _check_coefficients(kind: str, genes: int, evaluations: int) -> None:
    count = (genes + 1) * (genes + 2) // 2
    if evaluations < 2 * count:
        raise ValueError(
            f"optimizer {kind} fits {count} coefficients for {genes} genes and needs budget.evaluations of at least "
            f"{2 * count}, got {evaluations}; use fewer layer and tensor groups, more evaluations, or gp"
        )


def _check_pairs(algorithm: NestedMapSettings, genes: Genes, evaluations: int) -> None:
    for gene in genes.genes:
        if not gene.low <= 0.0 < 1.0 <= gene.high:
            raise ValueError(
                f"optimizer nested_map needs genes that are coefficients of models, with 0 and 1 inside their bounds; "
                f"{gene.name} has [{gene.low:g}, {gene.high:g}]; use task_arithmetic, or map"
            )
    needed = len(genes) + max(len(genes) - 1, 1) * algorithm.evaluations_per_pair
    if evaluations < needed:
        raise ValueError(
            f"optimizer nested_map needs budget.evaluations of at least {needed} for {len(genes)} genes "
            f"({len(genes)} alone, {algorithm.evaluations_per_pair} for each pair), got {evaluations}; raise the "
            "budget or lower optimizer.evaluations_per_pair"
        )
