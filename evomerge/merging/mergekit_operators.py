"""The operator that a mergekit config asks for, for one tensor: mergekit gives the parameters one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evomerge.errors import BadRecipe
from evomerge.merging.mergekit_layout import MergekitConfig, Slice
from evomerge.merging.mergekit_settings import WITHOUT_BASE, lookup, parameters_of
from search_spaces.operators import (
    OPERATORS,
    ArceeFusion,
    Karcher,
    Linear,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Operator,
    Passthrough,
    Ram,
    RamPlus,
    Sce,
    Slerp,
)
from search_spaces.operators.task_vectors import Vectors
from search_spaces.recipe import Source

_OF_ANY_BASE = ("slerp", *WITHOUT_BASE)
_VOTING = ("ties", "dare_ties", "breadcrumbs_ties", "della")


@dataclass(frozen=True)
class Asked:
    """What a config says of ``tensor``, which lies at ``t`` (0 to 1) in ``piece``."""

    config: MergekitConfig
    piece: Slice
    tensor: str
    t: float

    @property
    def method(self) -> str:
        """The merge method."""
        return self.config.method

    @property
    def present(self) -> list[Source]:
        """The models of the slice."""
        return [entry.model for entry in self.piece.inputs]

    @property
    def experts(self) -> list[Source]:
        """The models of the config that are not the base."""
        return [model for model in self.config.models if model != self.piece.base]

    def value(self, parameter: str, model: Source | None = None) -> Any:
        """Return the value of ``parameter``, of ``model`` if each has its own."""
        own = [entry.parameters for entry in self.piece.inputs if entry.model == model]
        scopes = [*own, self.piece.parameters, self.config.parameters]
        return lookup(parameter, parameters_of(self.method)[parameter], scopes, tensor=self.tensor, t=self.t)

    def values(self, parameter: str, absent: float) -> list[Any]:
        """Return the value of every expert; ``absent`` for those that are not in the slice."""
        return [self.value(parameter, model) if model in self.present else absent for model in self.experts]


def read_operator(asked: Asked) -> Operator:
    """Return the operator for a tensor of a config.

    Raises:
        BadRecipe: it asks for something that cannot be expressed.
    """
    if asked.method not in _OF_ANY_BASE and asked.piece.base != asked.config.base:
        raise BadRecipe("mergekit config: a slice with a base_model of its own is supported for slerp only")
    return _READERS.get(asked.method, _task_vectors)(asked)


def _linear(asked: Asked) -> Linear:
    present = asked.present
    weights = [asked.value("weight", model) if model in present else 0.0 for model in asked.config.models]
    return Linear(weights=tuple(weights), normalize=asked.value("normalize"))


def _karcher(asked: Asked) -> Karcher:
    weights = tuple(float(model in asked.present) for model in asked.config.models)
    return Karcher(weights=weights, max_iter=int(asked.value("max_iter")), tol=asked.value("tol"))


def _passthrough(asked: Asked) -> Passthrough:
    (model,) = asked.present
    return Passthrough(source=asked.config.models.index(model), scale=asked.value("scale", model))


def _sce(asked: Asked) -> Sce:
    _all_present(asked)
    return Sce(select_topk=min(1.0, max(0.0, asked.value("select_topk"))))


def _multislerp(asked: Asked) -> MultiSlerp:
    return MultiSlerp(weights=tuple(asked.values("weight", 0.0)), normalize=asked.value("normalize_weights"))


def _near_swap(asked: Asked) -> NearSwap:
    return NearSwap(source=_only_expert(asked), reach=max(0.0, asked.value("t")))


def _arcee_fusion(asked: Asked) -> ArceeFusion:
    return ArceeFusion(source=_only_expert(asked))


def _only_expert(asked: Asked) -> int:
    others = [model for model in asked.present if model != asked.piece.base]
    if len(others) != 1:
        raise BadRecipe(f"mergekit config: {asked.method} takes one model besides the base_model, got {len(others)}")
    return asked.config.models.index(others[0])


def _ram(asked: Asked) -> Ram:
    _all_present(asked)
    return Ram(epsilon=asked.value("epsilon"))


def _ram_plus(asked: Asked) -> RamPlus:
    _all_present(asked)
    return RamPlus(boost=asked.value("r"), boost_cap=asked.value("alpha"), epsilon=asked.value("epsilon"))


def _slerp(asked: Asked) -> Slerp:
    assert asked.piece.base is not None
    t = asked.value("t")
    (other,) = (model for model in asked.present if model != asked.piece.base)
    if not 0.0 <= t <= 1.0:
        raise BadRecipe(f"mergekit config: t should be between 0 and 1, got {t:g}")
    models = asked.config.models
    return Slerp(between=(models.index(asked.piece.base), models.index(other)), t=t)


def _model_stock(asked: Asked) -> ModelStock:
    _all_present(asked)
    if len(asked.experts) < 2:
        raise BadRecipe("mergekit config: model_stock needs the base_model and at least two other models")
    return ModelStock(filter_wise=asked.value("filter_wise"))


def _nuslerp(asked: Asked) -> NuSlerp:
    pair = [model for model in asked.present if model != asked.piece.base]
    if len(pair) != 2:
        raise BadRecipe(f"mergekit config: nuslerp merges two models besides the base_model, got {len(pair)}")
    first, second = (asked.value("weight", model) for model in pair)
    if abs(first + second) <= 1e-6:
        raise BadRecipe(f"mergekit config: the weights of nuslerp cancel ({first:g} and {second:g})")
    models = asked.config.models
    between = (models.index(pair[0]), models.index(pair[1]))
    return NuSlerp(between=between, t=second / (first + second), vectors=_vectors(asked))


def _vectors(asked: Asked) -> Vectors:
    """mergekit calls row-wise what normalises along the first dimension: the columns."""
    if asked.value("nuslerp_flatten"):
        return "tensor"
    return "columns" if asked.value("nuslerp_row_wise") else "rows"


def _all_present(asked: Asked) -> None:
    """Refuse a slice that leaves out a model where an operator has no weights that could be zero."""
    missing = [model.path for model in asked.experts if model not in asked.present]
    if missing:
        raise BadRecipe(
            f"mergekit config: {asked.method} merges all models of the config in every slice; {missing[0]!r} is "
            "missing in one, or only gives the tokenizer"
        )


def _task_vectors(asked: Asked) -> Operator:
    fields: dict[str, Any] = {"weights": asked.values("weight", 0.0), "normalize": asked.value("normalize")}
    fields["scale"] = asked.value("lambda")
    fields |= _sparsity(asked)
    if asked.method in _VOTING and fields["normalize"] and any(weight < 0 for weight in fields["weights"]):
        raise BadRecipe(
            f"mergekit config: {asked.method} with normalize and negative weights divides by a sum that may be near "
            "zero; evomerge divides by the sum of magnitudes, which is another merge. Set normalize: false"
        )
    return OPERATORS[asked.method].model_validate(fields)


def _spread(epsilon: float, density: float) -> float:
    """Return mergekit's epsilon as a share of the room that the density leaves it."""
    room = min(density, 1.0 - density)
    if room == 0.0:
        return 0.0  # nothing or everything is kept, whatever epsilon is
    if not 0.0 <= epsilon < room:
        raise BadRecipe(
            f"mergekit config: epsilon should be at least 0 and less than min(density, 1 - density) = {room:g}, "
            f"got {epsilon:g}"
        )
    return epsilon / room


def _sparsity(asked: Asked) -> dict[str, Any]:
    if asked.method == "task_arithmetic":
        return {}
    fields: dict[str, Any] = {"densities": [min(1.0, max(0.0, share)) for share in asked.values("density", 1.0)]}
    if "gammas" in OPERATORS[asked.method].model_fields:
        fields["gammas"] = asked.values("gamma", 0.0)
        if not all(0.0 <= gamma <= 1.0 for gamma in fields["gammas"]):
            raise BadRecipe(f"mergekit config: gamma should be between 0 and 1, got {fields['gammas']}")
    if "spreads" in OPERATORS[asked.method].model_fields:
        epsilons = asked.values("epsilon", 0.0)
        fields["spreads"] = [_spread(*pair) for pair in zip(epsilons, fields["densities"], strict=True)]
    if "rescale" in OPERATORS[asked.method].model_fields:
        fields["rescale"] = asked.value("rescale")
    elif asked.value("rescale"):
        raise BadRecipe(f"mergekit config: rescale is not supported for {asked.method}")
    return fields


_READERS: dict[str, Callable[[Asked], Operator]] = {
    "slerp": _slerp,
    "linear": _linear,
    "karcher": _karcher,
    "passthrough": _passthrough,
    "model_stock": _model_stock,
    "sce": _sce,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "nearswap": _near_swap,
    "arcee_fusion": _arcee_fusion,
    "ram": _ram,
    "ramplus_tl": _ram_plus,
}
