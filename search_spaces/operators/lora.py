"""Operators on the factors of LoRA adapters, ``tau_i = s_i B_i A_i``: every expert must be one.

What no adapter changes stays the base's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.operators.base import DENSITY, WEIGHT, Densities, KnobSpec, MergeOperator, Weights


class LoraLego(MergeOperator):
    """LoRA-LEGO (Zhao et al. 2025): ``theta_0 + scale sqrt(r / k) sum_c b_c a_c``, one unit of rank 1 a cluster.

    Units are the columns of every ``sqrt(s_i) B_i`` with the rows of ``sqrt(s_i) A_i``, side by side as one vector.
    k-means makes k clusters of all units of a matrix; (b_c, a_c) is the mean of a cluster, at the mean length of its
    units; r is the mean rank of the experts. k is `units`, r by default. The paper's formulas could not be had:
    the length and ``sqrt(r / k)`` follow descriptions of its two reweightings.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("factor", "scale", (0.0, 1.5), start=1.0, per_expert=False),)
    needs_adapters: ClassVar[bool] = True

    kind: Literal["lora_lego"] = "lora_lego"
    units: int | None = Field(default=None, ge=1, description="rank of the merge; none: the mean rank of the experts")
    scale: float = 1.0


class EvoLora(MergeOperator):
    """Evo-Merging's merge (arXiv 2509.12951) in delta space: ``theta_0 + scale sum_i w_i s_i B_i top(A_i)``.

    top keeps the largest `densities` of A_i. The published one merges A with A and B with B, which adds cross terms and
    squares every weight; here a weight counts once, and a negative one is one.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)
    needs_adapters: ClassVar[bool] = True

    kind: Literal["evo_lora"] = "evo_lora"
    weights: Weights
    densities: Densities
    scale: float = 1.0
