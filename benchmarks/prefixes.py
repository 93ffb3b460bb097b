"""How much of a path the candidates before it have computed already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.results import Results
from search_spaces.recipe import PathBody

WINDOWS = (1, 16)


def shared_prefixes(results: Results) -> dict[str, float]:
    """Return the mean share of a path's hops that one of the last 1 or 16 paths began with, in the order of asking.

    Hops are equal if model, layer and scale are, so that hidden states would be the same bit for bit.
    """
    paths = [c.recipe.body for c in results.candidates if c.origin == "optimizer"]
    hops = [_steps(body) for body in paths if isinstance(body, PathBody)]
    shares = {
        f"last {window}": [
            max(_common(path, other) for other in hops[max(0, number - window) : number]) / len(path)
            for number, path in enumerate(hops)
            if number
        ]
        for window in WINDOWS
    }
    return {name: float(np.mean(each)) for name, each in shares.items() if each}


def _steps(body: PathBody) -> list[tuple[object, int, float]]:
    return [(body.slots[hop.slot], hop.layer, hop.scale) for hop in body.hops]


def _common(path: Sequence[object], other: Sequence[object]) -> int:
    differs = (number for number, (one, two) in enumerate(zip(path, other, strict=False)) if one != two)
    return next(differs, min(len(path), len(other)))
