"""Operators on the singular vectors of matrices, prepared once: a candidate then costs what task arithmetic does.

They are for the matrices of the layers. Other tensors (norms, biases, embeddings, head) get the mean of the task
vectors, with the same weights and scale.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.operators.base import DENSITY, TENSOR, WEIGHT, Densities, KnobSpec, MergeOperator, Scope, Weights


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


class Opcm(MergeOperator):
    """OPCM (Tang et al. 2025, Merging Models on the Fly): one expert after the other, outside of what is there.

    ``M_1 = tau_1, M_i = M_(i-1) + P(tau_i)``: with ``M_(i-1) = U S V^T``, P takes the diagonal of ``U^T tau_i V`` away,
    and all of it among the largest singular values that make up the share `energy` of their sum. Tensors that are no
    matrices of layers are summed. Then ``theta_0 + scale c M_K``, c making the step of the whole model as long as that
    of the mean expert. The experts are taken in the order of the sources.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("factor", "scale", (0.0, 1.5), start=1.0, per_expert=False),)

    kind: Literal["opcm"] = "opcm"
    energy: float = Field(default=0.5, gt=0.0, le=1.0, description="share of the sum of singular values protected")
    scale: float = 1.0


class Doge(MergeOperator):
    """DOGE with task arithmetic (Wei et al. 2025, adaptive projective descent): ``theta_0 + scale sum_i w_i E_i``.

    ``E_i = l_i m_i (tau_i + D)`` with ``l_i = eta / |tau_i|``, m_i the largest `keep` of tau_i, and D that `iterations`
    of Adam find, from 0, for ``sum_j |rowsum(tau_j (tau_j - sum_i l_i (tau_i + D)))|^2``: gradients lose their part in
    the subspace of the first 1/`subspace` left singular vectors of the experts' own largest ones. It needs no data.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["doge"] = "doge"
    weights: Weights
    eta: float = Field(default=0.07, gt=0.0, description="length of every expert's part, matrix by matrix")
    subspace: int = Field(default=6, ge=1, description="one in so many directions is shared, and kept from change")
    keep: float = Field(default=0.3, gt=0.0, le=1.0, description="share of the largest elements kept")
    scope: Scope = TENSOR
    iterations: int = Field(default=400, ge=0, description="of Adam")
    rate: float = Field(default=1e-4, gt=0.0, description="Adam's learning rate: about how far a step moves an element")
    scale: float = 1.0


class Knots(MergeOperator):
    """KnOTS (Stoica et al. 2024): `method` in a basis that the experts share, ``theta_0 + scale U merge(S V_i^T)``.

    ``[tau_1 ... tau_K] = U S [V_1^T ... V_K^T]``, the task vectors side by side. Sums are the same in any basis, so the
    methods are those that trim or elect signs; densities are shares of each matrix (in the authors' code of the whole
    model). Tensors that are no matrices of layers are merged by `method` as they are.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["knots"] = "knots"
    weights: Weights
    densities: Densities
    method: Literal["ties", "dare_ties", "dare_linear"] = Field(default="ties", description="what merges in the basis")
    normalize: bool = True
    rescale: bool = Field(default=True, description="DARE: undo the loss of length by dropping")
    scale: float = 1.0
