"""The structure of a mergekit config: its models, its slices, and what it may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.errors import BadRecipe
from evomerge.foreign import parse_yaml
from evomerge.merging.mergekit_settings import METHODS, WITHOUT_BASE, Settings, known, parameters_of
from evomerge.merging.mergekit_tokenizer import Tokenizer, read_tokenizer
from search_spaces.recipe import Source

_TOP = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
)  # fmt: skip


@dataclass(frozen=True)
class SliceInput:
    """One model of a slice, with its own parameters."""

    model: Source
    parameters: Settings


@dataclass(frozen=True)
class Slice:
    """Layers [first, stop) of the output, and what goes into them; none for stop: up to the last layer."""

    first: int
    stop: int | None
    inputs: tuple[SliceInput, ...]
    base: Source | None
    parameters: Settings


@dataclass(frozen=True)
class MergekitConfig:
    """A mergekit config, checked: keys are known, every slice continues the one before unless it is of passthrough."""

    method: str
    base: Source | None
    slices: tuple[Slice, ...]
    parameters: Settings
    dtype: str | None
    tokenizer: Tokenizer
    models: tuple[Source, ...] = field(default=())
    merged: tuple[Source, ...] = field(default=())


def parse(text_or_path: str | Path) -> MergekitConfig:
    """Read a mergekit config from a file or from its text.

    Raises:
        BadRecipe: not YAML, or something that evomerge does not support; the text names it.
    """
    value = _load(text_or_path)
    known(value, _TOP, "the config")
    method = value.get("merge_method")
    if method not in METHODS:
        raise BadRecipe(f"mergekit config: merge_method {method!r} is not supported; {', '.join(METHODS)} are")
    if ("models" in value) == ("slices" in value):
        raise BadRecipe("mergekit config: exactly one of models and slices is needed")
    base = _model(value["base_model"]) if value.get("base_model") is not None else None
    if "models" in value:
        slices: tuple[Slice, ...] = (_models(value["models"], base, method),)
    else:
        slices = _slices(value["slices"], base, method)
    if method not in WITHOUT_BASE and any(piece.base is None for piece in slices):
        raise BadRecipe(f"mergekit config: {method} needs a base_model")
    inputs = [entry.model for piece in slices for entry in piece.inputs]
    tokenizer = read_tokenizer(value, base, partial(_model, base=base))
    merged = tuple(dict.fromkeys([*([base] if base else []), *inputs]))
    models = tuple(dict.fromkeys([*merged, *([tokenizer.model] if tokenizer.model else [])]))
    return MergekitConfig(
        method=method,
        base=base,
        slices=slices,
        parameters=_parameters(value, method),
        dtype=_dtype(value),
        tokenizer=tokenizer,
        models=models,
        merged=merged,
    )


def _load(text_or_path: str | Path) -> Mapping[str, Any]:
    try:
        if isinstance(text_or_path, Path) or "\n" not in text_or_path and Path(text_or_path).is_file():
            text_or_path = Path(text_or_path).read_text(encoding="utf-8")
        value = parse_yaml(text_or_path)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"mergekit config: cannot be read ({error})") from None
    except ValueError as error:
        raise BadRecipe(f"mergekit config: {error}") from None
    if not isinstance(value, Mapping):
        raise BadRecipe(f"mergekit config: expected a mapping or the path of a file, got {text_or_path!r}")
    return value


def _models(entries: Any, base: Source | None, method: str) -> Slice:
    inputs = []
    for entry in _list(entries, "models"):
        known(entry, ("model", "parameters"), "an entry of models")
        inputs.append(SliceInput(_model(entry.get("model"), base), _parameters(entry, method)))
    if base is not None and base not in [entry.model for entry in inputs]:
        inputs.append(SliceInput(base, {}))
    return _slice(0, None, inputs, base, {}, method)


def _slices(entries: Any, base: Source | None, method: str) -> tuple[Slice, ...]:
    slices: list[Slice] = []
    for entry in _list(entries, "slices"):
        known(entry, ("sources", "base_model", "parameters"), "an entry of slices")
        inputs, ranges = [], []
        for source in _list(entry.get("sources"), "sources"):
            known(source, ("model", "layer_range", "parameters"), "a source of a slice")
            inputs.append(SliceInput(_model(source.get("model"), base), _parameters(source, method)))
            ranges.append(tuple(source.get("layer_range") or ()))
        first = slices[-1].stop if slices else 0
        whole = len(set(ranges)) == 1 and len(ranges[0]) == 2 and 0 <= ranges[0][0] < ranges[0][1]
        if not whole or (ranges[0][0] != first and method != "passthrough"):
            raise BadRecipe(
                f"mergekit config: only passthrough may move, repeat or drop layers: expected "
                f"layer_range [{first}, ...] for every source of slice {len(slices)}, got {[list(r) for r in ranges]}"
            )
        own = _model(entry["base_model"]) if entry.get("base_model") is not None else base
        slices.append(_slice(ranges[0][0], ranges[0][1], inputs, own, _parameters(entry, method), method))
    return tuple(slices)


def _slice(
    first: int, stop: int | None, inputs: Sequence[SliceInput], base: Source | None, parameters: Settings, method: str
) -> Slice:
    models = [entry.model for entry in inputs]
    if len(set(models)) != len(models):
        raise BadRecipe(f"mergekit config: a model is listed twice for the same layers: {[m.path for m in models]}")
    if base is not None and base not in models:
        if method not in WITHOUT_BASE:
            raise BadRecipe(f"mergekit config: base_model {base.path!r} is not among the sources of a slice")
        base = None
    if method == "slerp" and len(models) != 2:
        raise BadRecipe(f"mergekit config: slerp merges two models, got {len(models)}")
    if method == "passthrough" and len(models) != 1:
        raise BadRecipe(f"mergekit config: passthrough copies one model a slice, got {len(models)}")
    return Slice(first, stop, tuple(inputs), base, parameters)


def _parameters(scope: Mapping[str, Any], method: str) -> Settings:
    parameters = scope.get("parameters") or {}
    known(parameters, tuple(parameters_of(method)), f"the parameters of {method}")
    return dict(parameters)


def _model(value: Any, base: Source | None = None) -> Source:
    """Read mergekit's model references: "path", "path@revision", "path+adapter", or {model: {path, revision}, lora}.

    An adapter stands for ``base`` with itself added.
    """
    model, lora = _parts(value)
    if lora is None:
        return model
    if model != base:
        raise BadRecipe(
            f"mergekit config: the LoRA adapter {lora.path!r} is one of {model.path!r}; only adapters of the "
            "base_model can be merged with it"
        )
    return lora


def _parts(value: Any) -> tuple[Source, Source | None]:
    """Return a model and its adapter."""
    if isinstance(value, Mapping):
        known(value, ("model", "path", "revision", "lora"), "a model")
        lora = _parts(value["lora"])[0] if value.get("lora") is not None else None
        inner = value.get("model", {key: value[key] for key in value if key != "lora"})
        if isinstance(inner, Mapping):
            known(inner, ("path", "revision"), "a model")
            return Source(path=str(inner.get("path")), revision=inner.get("revision")), lora
        model, own = _parts(inner)
        return model, lora or own
    if not isinstance(value, str) or not value:
        raise BadRecipe(f"mergekit config: expected a model's folder or Hub id, got {value!r}")
    whole, plus, adapter = value.partition("+")
    path, _, revision = whole.partition("@")
    return Source(path=path, revision=revision or None), _parts(adapter)[0] if plus else None


def _dtype(value: Mapping[str, Any]) -> str | None:
    for key in ("dtype", "out_dtype"):
        name = str(value.get(key) or "float32").removeprefix("torch.")
        if name not in ("float32", "bfloat16", "float16"):
            raise BadRecipe(f"mergekit config: {key} should be float32, bfloat16 or float16, got {value[key]!r}")
    chosen = value.get("out_dtype") or value.get("dtype")
    return str(chosen).removeprefix("torch.") if chosen else None


def _list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise BadRecipe(f"mergekit config: {what} should be a list that is not empty, got {value!r}")
    return value
