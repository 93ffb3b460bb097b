"""Canonical JSON and digests: the one way in which an immutable value gets its identity."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value: unknown keys are refused, floats are finite."""

    # Built when first used, which saves every process the greater part of some hundred classes.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def canonical_json(value: Any) -> str:
    """Return ``value`` (JSON types only) as JSON with sorted keys and no spaces.

    Floats are written with the shortest text that reads back to the same double, so equal values give equal text.

    Raises:
        ValueError: ``value`` holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
