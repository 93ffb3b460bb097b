"""Operators that decide element by element what becomes of the task vectors, ``tau_i = theta_i - theta_0``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.operators.base import DENSITY, TENSOR, WEIGHT, Densities, KnobSpec, MergeOperator, Scope, Weights

_EPSILON = KnobSpec("epsilon", "epsilon", (0.0, 1e-4), (0.0, float("inf")), 1e-5, per_expert=False)


class NearSwap(MergeOperator):
    """Go towards one expert, no element further than `reach`: ``theta_0 + sign(tau) min(|tau|, reach)``.

    mergekit's nearswap, whose t is `reach`: elements closer than that are the expert's.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("reach", "reach", (0.0, 0.01), (0.0, float("inf")), 1e-3, per_expert=False),
    )
    most_experts: ClassVar[int | None] = 1

    kind: Literal["nearswap"] = "nearswap"
    source: int = Field(ge=0, description="position of the expert")
    reach: float = Field(ge=0.0, description="most that an element moves (mergekit's t)")


class ArceeFusion(MergeOperator):
    """Take one expert's outstanding elements: ``theta_0 + m tau``, m 1 where the importance passes Tukey's fence.

    The importance is ``|tau| KL(softmax(theta) || softmax(theta_0))``, softmax and divergence over rows; the fence is
    ``median + fence (third quartile - first quartile)`` over the tensor (mergekit's arcee_fusion has fence 1.5).
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("fence", "fence", (0.0, 3.0), (0.0, float("inf")), 1.5, per_expert=False),
    )
    most_experts: ClassVar[int | None] = 1

    kind: Literal["arcee_fusion"] = "arcee_fusion"
    source: int = Field(ge=0, description="position of the expert")
    fence: float = Field(default=1.5, ge=0.0, description="interquartile ranges above the median")


class Ram(MergeOperator):
    """Reinforced Agent Merging (arXiv 2601.13572): what one expert moved is kept, what several moved is averaged.

    ``theta_0 + sum_i m_i tau_i / sum_i m_i`` with m_i 1 where ``|tau_i| > epsilon`` and 0 elsewhere.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (_EPSILON,)

    kind: Literal["ram"] = "ram"
    epsilon: float = Field(default=1e-5, ge=0.0, description="largest |tau| that counts as unmoved")


class RamPlus(MergeOperator):
    """RAM+ per tensor (arXiv 2601.13572): as `Ram`, and what only expert i moved is multiplied by a factor.

    It is ``1 + boost min(rho_i, boost_cap)`` with rho_i the number of its moved elements that others moved, too, over
    the number of those that only it moved. `boost` is the paper's r, `boost_cap` its alpha.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("boost", "boost", (0.0, 0.5), start=0.1, per_expert=False),
        KnobSpec("boost_cap", "boost_cap", (0.0, 1.0), (0.0, float("inf")), 0.2, per_expert=False),
        _EPSILON,
    )

    kind: Literal["ramplus_tl"] = "ramplus_tl"
    boost: float = 0.1
    boost_cap: float = Field(default=0.2, ge=0.0)
    epsilon: float = Field(default=1e-5, ge=0.0, description="largest |tau| that counts as unmoved")


class MagMax(MergeOperator):
    """Of all ``w_i tau_i`` the one that is largest in magnitude, the first of equals (Marczak et al. 2024)."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["magmax"] = "magmax"
    weights: Weights
    scale: float = 1.0


class Consensus(MergeOperator):
    """Task arithmetic on the elements that matter to several experts (Wang et al. 2024, TALL masks and Consensus).

    ``theta_0 + scale c sum_i w_i tau_i`` with c 1 where at least `votes` experts have ``|tau_i| > selectivity
    |sum_j w_j tau_j - tau_i|`` and 0 elsewhere: more votes than there are experts leave the base.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        WEIGHT,
        KnobSpec("selectivity", "selectivity", (0.2, 0.6), (0.0, float("inf")), 0.4, per_expert=False),
    )

    kind: Literal["consensus"] = "consensus"
    weights: Weights
    selectivity: float = Field(ge=0.0, description="the paper's lambda: larger values give fewer votes")
    votes: int = Field(default=2, ge=0, description="experts that must need an element; 0 is task arithmetic")
    scale: float = 1.0


class LocalizeStitch(MergeOperator):
    """Keep the largest `densities` of each task vector, average where they overlap (He et al. 2024, dataless).

    ``theta_0 + scale sum_i w_i m_i tau_i / sum_i m_i`` with m_i 1 where an element is kept and 0 elsewhere.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["localize_stitch"] = "localize_stitch"
    weights: Weights
    densities: Densities
    scope: Scope = TENSOR
    scale: float = 1.0


class ComPeft(MergeOperator):
    """Task arithmetic on signs of one size: ``theta_0 + scale sum_i w_i std(tau_i) sign(m_i tau_i)``.

    ComPEFT's compression (Yadav et al. 2023), whose alpha is ``scale w_i``, as a filter: m_i keeps the largest
    `densities` of each task vector, std is its standard deviation.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["compeft"] = "compeft"
    weights: Weights
    densities: Densities
    scope: Scope = TENSOR
    scale: float = 1.0


class Pcb(MergeOperator):
    """Parameter competition balancing (Du et al. 2024): ``theta_0 + scale sum_i w_i s_i tau_i / sum_i s_i``.

    s_i rises from 0 to 1 over the largest `ratio` of ``b_i = exp(K x_i^2) tanh(tau_i sum_j tau_j)``, x_i being
    ``|tau_i|`` from its smallest (0) to its largest (1) value; 1e-4 of the elements are cut off at either end first.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        WEIGHT,
        KnobSpec("ratio", "ratio", (0.02, 0.5), (0.0, 1.0), 0.1, per_expert=False),
    )

    kind: Literal["pcb"] = "pcb"
    weights: Weights
    ratio: float = Field(ge=0.0, le=1.0, description="share of elements that count")
    scope: Scope = TENSOR
    scale: float = 1.0


class Widen(MergeOperator):
    """WIDEN (Yu et al. 2024): ``theta_0 + scale sum_i w_i tau_i``, with a weight for every column of a matrix.

    w_i is the mean of two scores, of how far the column's norm has moved, and its direction (1 - cosine). Each is
    ranked within its expert, from 0 to 1; the score is the softmax of the ranks over the experts, or `calibration`
    where the rank exceeds `above` times the expert's mean. A column is what an input of the layer is multiplied by; of
    embeddings, the row of a token. Elements of vectors are scored by ``|tau_i|`` itself.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("above", "above", (0.5, 2.0), (0.0, float("inf")), 1.0, per_expert=False),
        KnobSpec("calibration", "calibration", (0.3, 1.5), start=1.0, per_expert=False),
    )

    kind: Literal["widen"] = "widen"
    above: float = Field(default=1.0, ge=0.0, description="the paper's t: means above which a rank counts in full")
    calibration: float = Field(default=1.0, description="the paper's s: what such a rank counts")
    scale: float = 1.0
