"""Digests of documents and of tasks: two that are equal give equal scores for equal answers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

# where a file lies says nothing about scores; the documents themselves are hashed
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "task_alias", "tag")


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document's content; the order of its fields does not matter."""
    return _digest(document)


def task_digest(task: Any) -> str:
    """Return the SHA-256 over an lm-eval task's configuration, its few-shot pool and lm-eval's version.

    Functions count with the source of the module that defines them.
    """
    config = dataclasses.asdict(task.config)
    for key in _PLACES:
        config.pop(key, None)
    pool = list(task.sampler.df) if task.config.num_fewshot and hasattr(task, "sampler") else []
    return _digest({"config": config, "fewshot": pool, "version": str(task.VERSION), "lm_eval": version("lm_eval")})


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_describe, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _describe(value: Any) -> Any:
    """JSON for what JSON does not know: functions by their source, the rest by type and text."""
    if isinstance(value, functools.partial):
        return ["partial", value.func, list(value.args), value.keywords]
    if callable(value):
        return _describe_callable(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if hasattr(value, "tolist"):
        return value.tolist()
    return [type(value).__qualname__, str(value)]


def _describe_callable(value: Callable[..., Any]) -> list[str]:
    named = value if hasattr(value, "__qualname__") else type(value)
    module = inspect.getmodule(named)
    try:
        source = inspect.getsource(module) if module else inspect.getsource(named)
    except (OSError, TypeError):  # built in, or defined where no file is
        source = ""
    return ["function", named.__qualname__, hashlib.sha256(source.encode()).hexdigest()]
