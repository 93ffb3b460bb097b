"""mergekit's parameter settings: scalars, gradients and lists with filters, and which of them applies to a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import BadRecipe

WITHOUT_BASE = ("linear", "karcher", "passthrough")  # methods that do not need a base_model
METHODS = (
    "linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "model_stock", "breadcrumbs",
    "breadcrumbs_ties", "della", "della_linear", "sce", "nuslerp", "multislerp", "karcher", "passthrough", "nearswap",
    "arcee_fusion", "ram", "ramplus_tl",
)  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """A parameter of a merge method: its type, its default (none: required), and whether each model has its own."""

    kind: type[float] | type[bool]
    default: float | bool | None = None
    per_model: bool = False


_WEIGHT = Parameter(float, per_model=True)
_EPSILON = Parameter(float, 1e-5)
_PARAMETERS = {
    "linear": {"weight": _WEIGHT, "normalize": Parameter(bool, True)},
    "slerp": {"t": Parameter(float)},
    "nuslerp": {
        "weight": _WEIGHT,
        "nuslerp_row_wise": Parameter(bool, False),
        "nuslerp_flatten": Parameter(bool, True),
    },
    "multislerp": {"weight": _WEIGHT, "normalize_weights": Parameter(bool, True)},
    "sce": {"select_topk": Parameter(float, 1.0), "int8_mask": Parameter(bool, False)},
    "model_stock": {"filter_wise": Parameter(bool, False)},
    "karcher": {"max_iter": Parameter(float, 10.0), "tol": Parameter(float, 1e-5)},
    "passthrough": {"scale": Parameter(float, 1.0, per_model=True)},
    "nearswap": {"t": Parameter(float)},
    "arcee_fusion": {},
    "ram": {"epsilon": _EPSILON},
    "ramplus_tl": {"r": Parameter(float, 0.1), "alpha": Parameter(float, 0.2), "epsilon": _EPSILON},
}


def parameters_of(method: str) -> dict[str, Parameter]:
    """Return the parameters that mergekit 0.1.5 knows for ``method``, with its defaults."""
    if method in _PARAMETERS:
        return _PARAMETERS[method]
    known = {
        "weight": Parameter(float, per_model=True),
        "density": Parameter(float, 1.0, per_model=True),
        "normalize": Parameter(bool, method in ("ties", "della")),
        "rescale": Parameter(bool, method.startswith(("dare", "della"))),
        "lambda": Parameter(float, 1.0),
        "int8_mask": Parameter(bool, False),  # a saving of memory there, without effect on the result
    }
    if method.startswith("breadcrumbs"):
        known["gamma"] = Parameter(float, 0.01, per_model=True)
    if method.startswith("della"):
        known["epsilon"] = Parameter(float, 0.15, per_model=True)
    return known


Settings = Mapping[str, Any]


def lookup(name: str, parameter: Parameter, scopes: Iterable[Settings], *, tensor: str, t: float) -> Any:
    """Return the value of ``name`` for ``tensor``: of the first of ``scopes`` that has one, else the default.

    ``t`` is where the layer lies in its slice, 0 to 1, for gradients.

    Raises:
        BadRecipe: a value has the wrong type, or a required parameter is missing.
    """
    for scope in scopes:
        if name in scope:
            value = _evaluate(name, parameter, scope[name], tensor, t)
            if value is not None:
                return value
    if parameter.default is None:
        raise BadRecipe(f"mergekit config: parameter {name!r} is required and missing for tensor {tensor!r}")
    return parameter.default


def filters_in(scope: Settings) -> Iterator[str]:
    """Iterate over the texts that the settings of ``scope`` filter by."""
    for setting in scope.values():
        for entry in setting if isinstance(setting, list) else [setting]:
            if isinstance(entry, Mapping) and entry.get("filter") not in (None, "*"):
                yield str(entry["filter"])


def _evaluate(name: str, parameter: Parameter, setting: Any, tensor: str, t: float) -> Any:
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _scalar(name, parameter, setting)
    if setting and all(isinstance(entry, Mapping) for entry in setting):
        return _filtered(name, parameter, setting, tensor, t)
    if not setting:
        return None
    return _gradient(name, parameter, [_scalar(name, parameter, entry) for entry in setting], t)


def _filtered(name: str, parameter: Parameter, entries: list[Mapping[str, Any]], tensor: str, t: float) -> Any:
    for entry in entries:
        unknown = sorted(set(entry) - {"value", "filter"})
        if unknown or "value" not in entry:
            raise BadRecipe(f"mergekit config: {name}: expected entries of value and filter, got {dict(entry)}")
        pattern = entry.get("filter")
        if pattern is None or pattern == "*" or str(pattern) in tensor:
            return _evaluate(name, parameter, entry["value"], tensor, t)
    return None


def _gradient(name: str, parameter: Parameter, values: list[Any], t: float) -> Any:
    """Interpolate between evenly spaced numbers; of booleans take the one at or before ``t``."""
    if parameter.kind is bool:
        return values[int(t * (len(values) - 1))]
    place = t * (len(values) - 1)
    before = int(place)
    after = min(len(values) - 1, before + 1)
    share = place - before
    return (1 - share) * values[before] + share * values[after]


def _scalar(name: str, parameter: Parameter, value: Any) -> Any:
    if parameter.kind is bool:
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise BadRecipe(f"mergekit config: {name} should be true or false, got {value!r}")
    try:
        return float(value)  # YAML reads 1e-3 as text, and mergekit takes it as a number
    except (TypeError, ValueError):
        raise BadRecipe(f"mergekit config: {name} should be a number, got {value!r}") from None


def known(value: Any, keys: Sequence[str], where: str) -> None:
    """Check that ``value``, the content of ``where``, is a mapping with some of ``keys``.

    Raises:
        BadRecipe: it is not; what is unknown is named.
    """
    if not isinstance(value, Mapping):
        raise BadRecipe(f"mergekit config: {where} should be a mapping, got {value!r}")
    if unknown := sorted(str(key) for key in value if key not in keys):
        raise BadRecipe(
            f"mergekit config: {', '.join(map(repr, unknown))} is not supported in {where}; known: {', '.join(keys)}"
        )
