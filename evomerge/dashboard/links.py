"""Addresses inside the dashboard. What is chosen stands in the address, so that links can be kept and sent."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, unquote

from dash import dcc

PREFIX = "/search/"


def search_path(name: str) -> str:
    """Return the address of a search's page."""
    return PREFIX + quote(name.encode("utf-8", "replace"), safe="")


def search_name(path: str | None) -> str | None:
    """Return the search whose page ``path`` is, None for any other page."""
    if not path or not path.startswith(PREFIX):
        return None
    return unquote(path.removeprefix(PREFIX)) or None


def query(candidate: int | None, other: int | None = None) -> str:
    """Return the end of an address that names the chosen candidate and the one that it is compared with."""
    parts = [f"{key}={number}" for key, number in (("candidate", candidate), ("with", other)) if number is not None]
    return f"?{'&'.join(parts)}" if parts else ""


def chosen(text: str | None, key: str = "candidate") -> int | None:
    """Return the number that ``?candidate=`` (or another key) names; None without one."""
    found = parse_qs((text or "").removeprefix("?")).get(key, [""])[0]
    return int(found) if found.isascii() and found.isdigit() and len(found) < 10 else None


def candidate_link(search: str, number: int, label: str) -> Any:
    """Return a link to a candidate."""
    return dcc.Link(label, href=search_path(search) + query(number))
