"""Counters and gauges that Ray's exporter serves to Prometheus, on the node of the process that keeps them."""

from __future__ import annotations

import importlib
from typing import Any


class Meters:
    """Keeps numbers by name and tags. Ray calls a counter ``ray_NAME_total``, a gauge ``ray_NAME``.

    A meter is made when it is first used; its tags are those of that moment. Use it while Ray is connected.
    """

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("ray.util.metrics")
        self._meters: dict[str, Any] = {}

    def count(self, name: str, amount: float, about: str, **tags: str) -> None:
        """Add ``amount``, at least 0, to a counter."""
        if amount > 0:
            self._meter(self._library.Counter, name, about, tags).inc(amount, tags=tags)

    def gauge(self, name: str, value: float, about: str, **tags: str) -> None:
        """Set a gauge."""
        self._meter(self._library.Gauge, name, about, tags).set(value, tags=tags)

    def _meter(self, kind: Any, name: str, about: str, tags: dict[str, str]) -> Any:
        if name not in self._meters:
            self._meters[name] = kind(name, description=about, tag_keys=tuple(tags))
        return self._meters[name]
