"""Operators that decide element by element what becomes of the task vectors, ``tau_i = theta_i - theta_0``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.operators.base import KnobSpec, MergeOperator

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
