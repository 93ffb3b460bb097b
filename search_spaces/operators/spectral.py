"""Operators on the singular vectors of matrices, prepared once: a candidate then costs what task arithmetic does.

They are for the matrices of the layers. Other tensors (norms, biases, embeddings, head) get the mean of the task
vectors, with the same weights and scale.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.operators.base import WEIGHT, KnobSpec, MergeOperator, Weights


class TsvM(MergeOperator):
    """TSV-Merge (Gargiulo et al. 2025): ``theta_0 + scale sum_i w_i U'_i S_i V'_i^T``.

    ``U_i S_i V_i^T`` are the ``rank min(m, d) / K`` largest singular values and vectors of the m x d task vector i;
    U' and V' are the matrices with orthonormal columns nearest to [U_1 ... U_K] and [V_1 ... V_K].
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["tsv_m"] = "tsv_m"
    weights: Weights
    rank: float = Field(default=1.0, gt=0.0, le=1.0, description="share of an expert's part of the singular values")
    scale: float = 1.0


class IsoC(MergeOperator):
    """Iso-C (Marczak et al. 2025): ``theta_0 + scale s U V^T`` with ``U S V^T = sum_i tau_i``, s the mean of S.

    Directions that no expert uses stay unused (a full singular value decomposition would fill them at random).
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("factor", "scale", (0.0, 1.5), start=1.0, per_expert=False),)

    kind: Literal["iso_c"] = "iso_c"
    scale: float = 1.0


class IsoCts(MergeOperator):
    """Iso-CTS (Marczak et al. 2025): ``theta_0 + scale s U' V'^T``, one length in a common and in specific subspaces.

    U' and V' are the matrices with orthonormal columns nearest to the singular vectors of the `common` share of the
    largest singular values of ``sum_i tau_i`` and, for the rest, of as many of each ``tau_i`` outside that column
    space; s is the mean of all these singular values.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("factor", "scale", (0.0, 1.5), start=1.0, per_expert=False),)

    kind: Literal["iso_cts"] = "iso_cts"
    common: float = Field(default=0.8, ge=0.0, le=1.0, description="share of the directions that all experts share")
    scale: float = 1.0


class SubspaceBoosting(MergeOperator):
    """Subspace boosting (Skorobogat et al. 2025) of task arithmetic: ``theta_0 + scale U max(S, s) V^T``.

    ``U S V^T = sum_i tau_i``; s is the singular value at which the largest ones reach the share `energy` of their sum.
    Directions that no expert uses stay unused.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("factor", "scale", (0.0, 1.5), start=0.5, per_expert=False),)

    kind: Literal["subspace_boosting"] = "subspace_boosting"
    energy: float = Field(default=0.2, gt=0.0, le=1.0, description="share of the sum of singular values left as it is")
    scale: float = 1.0


class Swudi(MergeOperator):
    """WUDI's optimum in closed form, early stopped: ``theta_0 + scale sum_i w_i E_i``.

    WUDI (Cheng et al. 2025) minimises ``sum_i |(tau - tau_i) tau_i^T|^2 / |tau_i|^2`` over tau, from ``sum_i tau_i``.
    With ``C = sum_i tau_i^T tau_i / |tau_i|^2 = V L V^T`` and f = 1 - exp(-`time` L) on the `rank` largest
    eigenvalues, 0 on the others, gradient flow reaches the sum of ``E_i = tau_i (1 - V f V^T) + D_i V (f / L) V^T``,
    ``D_i = tau_i tau_i^T tau_i / |tau_i|^2``.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["swudi"] = "swudi"
    weights: Weights
    rank: float = Field(default=0.85, gt=0.0, le=1.0, description="share of the eigenvalues that are used")
    time: float = Field(default=300.0, gt=0.0, description="of the gradient flow")
    scale: float = 1.0
