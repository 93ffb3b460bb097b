"""Operators that weigh task vectors by what the experts do on calibration prompts (`search_spaces.calibration`).

The statistics are computed once, and virtual task vectors E_i are made of them once: a candidate then costs what task
arithmetic does. With equal statistics ``E_i = tau_i``, so weights mean what they mean in task arithmetic; weights of
``1 / K``, K experts, give the merge of the papers. Tensors without statistics are merged by task arithmetic.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.calibration import Digest
from search_spaces.operators.base import DENSITY, WEIGHT, Densities, KnobSpec, MergeOperator, Weights

_PROMPTS = Field(description="digest of the calibration prompts")
_OFF_DIAGONAL = Field(
    default=0.5, ge=0.0, le=1.0, description="factor on the off-diagonal elements of the Gram matrices"
)


class Fisher(MergeOperator):
    """Fisher merging (Matena and Raffel 2022): ``theta_0 + scale sum_i w_i K F_i / (sum_j F_j) tau_i``, elementwise.

    ``F_i = (f_i / rms(f_i) + 1e-6)^exponent``; f_i is the diagonal of expert i's Fisher information: the mean over its
    prompts x of ``(d log p(y | x))^2``, y drawn from the expert's own distribution at every token of the answer and
    log p divided by the number of these tokens. It covers all tensors.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["fisher"] = "fisher"
    weights: Weights
    prompts: Digest = _PROMPTS
    exponent: float = Field(default=1.0, gt=0.0, le=1.0, description="less than 1 evens the experts' shares out")
    scale: float = 1.0


class RegMean(MergeOperator):
    """RegMean (Jin et al. 2023): ``theta_0 + scale sum_i w_i K tau_i G_i (sum_j G_j)^-1`` for the linear layers.

    The merge of weights 1 / K is nearest, in least squares, to what each linear layer of each expert answers to its own
    inputs. ``G_i`` is the mean of ``x x^T`` over the inputs x of the layer in expert i, all tokens of its prompts,
    with the off-diagonal elements times `off_diagonal`, and a ridge of 1e-6 of the mean diagonal.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["regmean"] = "regmean"
    weights: Weights
    prompts: Digest = _PROMPTS
    off_diagonal: float = _OFF_DIAGONAL
    scale: float = 1.0


class RegMeanPlus(MergeOperator):
    """RegMean++ (Nguyen et al. 2025): as `RegMean`, with the inputs that a merged model gives each layer.

    Layer by layer, from the first: expert i's layer l is run on what the layers before it, already merged with weights
    1 / K, make of expert i's prompts. The virtual task vectors are those of this one merge, whatever the weights.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["regmean_plus"] = "regmean_plus"
    weights: Weights
    prompts: Digest = _PROMPTS
    off_diagonal: float = _OFF_DIAGONAL
    scale: float = 1.0


class Rcp(MergeOperator):
    """RCP-Merging (Yang et al. 2025): ``theta_0 + scale (w_r tau_r + sum_i w_i m_i tau_i)``.

    Expert r, at position `source`, keeps its ability; of each other expert i only elements that most of its prompts
    vote for are added. A prompt of expert i votes for an element where ``g theta_i + protection f_r (theta_r -
    theta_i)^2 <= 0`` with g the gradient of the loss on its reference answer and f_r the diagonal Fisher information of
    expert r (see `Fisher`): where dropping the element would cost expert i more than taking it costs expert r.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)
    fewest_experts: ClassVar[int] = 2

    kind: Literal["rcp"] = "rcp"
    weights: Weights
    prompts: Digest = _PROMPTS
    source: int = Field(ge=0, description="position of the expert whose ability is kept")
    protection: float = Field(
        default=1000.0, ge=0.0, description="the paper's lambda: larger values keep more of expert r"
    )
    scale: float = 1.0


class Ota(MergeOperator):
    """OTA merging with Fast Fisher Grafting: ``theta_0 + scale sum_i w_i K P_i m_i tau_i / sum_j P_j``, elementwise.

    v_i are the second moments of Adam's gradients at the end of expert i's training, which its folder must hold
    (`second_moments.safetensors`: a tensor for every one of the model, of the same name and shape). m_i is 1 for the
    `densities` share of each tensor with the largest ``v_i tau_i^2``, 0 elsewhere; ``P_i = v_i^exponent``. Weights of
    ``1 / K`` give the paper's merge. Densities are told apart to 1 / 16384; v_i below 1e-6 of their mean count as that.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["ota"] = "ota"
    weights: Weights
    densities: Densities
    exponent: float = Field(default=0.5, gt=0.0, le=1.0, description="less than 1 evens the experts' shares out")
    scale: float = 1.0
