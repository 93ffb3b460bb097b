"""The process-wide state of lm-eval that has to be different while we call it, put back afterwards.

lm-eval renders task templates in one Jinja environment that is not sandboxed and that compiles a template anew for
every document; it logs and draws progress bars for every task. Inside `calling_lm_eval` templates are compiled once,
rendered in a sandbox unless the task is trusted, and nothing is written to the terminal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import datasets
import jinja2
import lm_eval.api.task
import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment

_TEMPLATES_KEPT = 4096
_CHATTY = ("lm_eval", "datasets")


class _CompilesOnce(jinja2.Environment):
    """An environment that keeps compiled templates by their source."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._compiled: dict[str, jinja2.Template] = {}

    def from_string(
        self,
        source: Any,
        globals: Any = None,
        template_class: Any = None,
    ) -> jinja2.Template:
        """Return the template of ``source``, compiled at most once when neither of the others is given."""
        if globals is not None or template_class is not None or not isinstance(source, str):
            return super().from_string(source, globals, template_class)
        if source not in self._compiled:
            if len(self._compiled) >= _TEMPLATES_KEPT:
                self._compiled.clear()
            self._compiled[source] = super().from_string(source)
        return self._compiled[source]


class _Sandbox(_CompilesOnce, SandboxedEnvironment):
    """The same, without access to Python's internals."""


@cache
def _environment(*, sandboxed: bool) -> jinja2.Environment:
    kind = _Sandbox if sandboxed else _CompilesOnce
    environment = kind(loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(lm_eval.utils.env.filters)
    return environment


@contextmanager
def calling_lm_eval(*, trusted: bool) -> Iterator[None]:
    """Call lm-eval inside this: quiet, each template compiled once, sandboxed unless ``trusted``."""
    environment, progress = lm_eval.utils.env, lm_eval.api.task.tqdm
    with _quiet(_CHATTY):
        lm_eval.utils.env = _environment(sandboxed=not trusted)
        lm_eval.api.task.tqdm = partial(progress, disable=True)
        try:
            yield
        finally:
            lm_eval.utils.env, lm_eval.api.task.tqdm = environment, progress


@contextmanager
def _quiet(names: tuple[str, ...]) -> Iterator[None]:
    loggers: Mapping[str, logging.Logger] = {name: logging.getLogger(name) for name in names}
    levels = {name: logger.level for name, logger in loggers.items()}
    bars = datasets.are_progress_bars_disabled()
    for logger in loggers.values():
        logger.setLevel(max(logger.level, logging.CRITICAL))
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if not bars:
            datasets.enable_progress_bars()
