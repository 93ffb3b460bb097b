"""The process-wide state of lm-eval that has to be different while we call it, put back afterwards.

lm-eval renders task templates in one Jinja environment that is not sandboxed and that compiles a template anew for
every document; it logs and draws progress bars for every task. Inside `calling_lm_eval` templates are compiled once,
rendered in a sandbox unless the task is trusted, and nothing is written to the terminal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import datasets
import jinja2
import lm_eval.api.task
import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment

_TEMPLATES_KEPT = 4096
_LOGGER = logging.getLogger("lm_eval")
_SILENCE = logging.NullHandler()


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
    """Call lm-eval inside this: silent, each template compiled once, sandboxed unless ``trusted``.

    Costs microseconds: it is entered for every candidate. Levels of loggers are left alone, for setting one makes
    `logging` forget what it knows about all of them.
    """
    environment, progress, propagates = lm_eval.utils.env, lm_eval.api.task.tqdm, _LOGGER.propagate
    lm_eval.utils.env = _environment(sandboxed=not trusted)
    lm_eval.api.task.tqdm = partial(progress, disable=True)
    _LOGGER.propagate = False
    _LOGGER.addHandler(_SILENCE)
    try:
        yield
    finally:
        lm_eval.utils.env, lm_eval.api.task.tqdm, _LOGGER.propagate = environment, progress, propagates
        _LOGGER.removeHandler(_SILENCE)


@contextmanager
def loading_data_sets() -> Iterator[None]:
    """Load data sets inside this: no progress bars, no warnings."""
    verbosity, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
