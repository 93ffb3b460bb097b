"""The environment variables that Ray reads when it is imported: authentication, telemetry."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

# Ray caches the token that it read first, so all private clusters of a process use the same one.
_PROCESS_TOKEN = secrets.token_hex(32)
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

# What Ray changes in the driver's environment by itself (the first sends `breakpoint()` to Ray's debugger).
RAY_SETS = ("PYTHONBREAKPOINT", "RAY_CLIENT_MODE")


def _home_token() -> Path:
    return Path.home() / ".ray/auth_token"


def token() -> str | None:
    """Return the token that Ray would show to a cluster, or None.

    Raises:
        OSError: it is in a file that cannot be read.
    """
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return text
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path).read_text(encoding="utf-8").strip()
    return _home_token().read_text(encoding="utf-8").strip() if _home_token().exists() else None


def ray_settings(*, private: bool) -> dict[str, str]:
    """Return the environment variables that Ray needs; what the user set is kept.

    ``private``: for a cluster of this process alone, else for one that is joined.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would ship the current folder to every worker
    }
    has_token = any(os.environ.get(name) for name in _TOKEN_VARIABLES) or _home_token().exists()
    if private and not has_token:
        wanted["RAY_AUTH_TOKEN"] = _PROCESS_TOKEN  # otherwise Ray writes one into the home folder, readable by all
    if private or has_token:
        wanted["RAY_AUTH_MODE"] = "token"  # Ray does so by itself, but not when it joins by address
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextlib.contextmanager
def environment(variables: dict[str, str], also_restored: Sequence[str] = ()) -> Iterator[None]:
    """Set ``variables``; at the end they, and those ``also_restored``, are again what they were."""
    before = {name: os.environ.get(name) for name in (*variables, *also_restored)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
