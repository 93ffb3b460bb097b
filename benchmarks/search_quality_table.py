"""The table and the figures of `search_quality.py`, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chart import Line, draw_chart

MERGEKIT = "mergekit-evolve"
PICKED = ("gp", "cma_es, preselect 20, correlation 0.3")  # by `auto`: for short searches, for longer ones
ANCHORS, MOST_LINES = (MERGEKIT, "cma_es", "random"), 8
FIGURES = (  # measure, against what, title
    ("test", "evaluations", "joint score on test documents"),
    ("hypervolume", "evaluations", "hypervolume on search documents"),
    ("test", "cpu_seconds", "joint score on test documents"),
    ("hypervolume", "cpu_seconds", "hypervolume on search documents"),
)


def series(rows: Sequence[dict[str, Any]], name: str, measure: str) -> np.ndarray:
    """Return (runs, checkpoints) of one measure of the runs of one algorithm."""
    runs = [row["checkpoints"] for row in rows if row["algorithm"] == name]
    return np.array([[point[measure] for point in run] for run in runs])


def by_experts(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that may be compared, by their experts' name."""
    names = dict.fromkeys(row["experts"] for row in rows)
    return {name: [row for row in rows if row["experts"] == name] for name in names}


def names_in(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Algorithms that have a finished run, in the order of the rows."""
    return list(dict.fromkeys(row["algorithm"] for row in rows))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Medians and quartiles of the test score at each checkpoint, the last hypervolume, and what `auto` picks."""
    if not rows:
        return "no run is finished yet"
    checkpoints = [point["evaluations"] for point in max((row["checkpoints"] for row in rows), key=len)]
    lines = [
        "| search | runs | " + " | ".join(map(str, checkpoints)) + " | hypervolume at the end |",
        "|---|---|" + "---|" * (len(checkpoints) + 1),
    ]
    for name in names_in(rows):
        test, volume = series(rows, name, "test"), series(rows, name, "hypervolume")
        unspent = ["-"] * (len(checkpoints) - test.shape[1])
        cells = [cell(column) for column in test.T] + unspent + [cell(volume[:, -1])]
        lines.append(f"| `{name}` | {len(test)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(answer(rows, checkpoints, name) for name in PICKED)])


def cell(values: np.ndarray) -> str:
    """``0.812 [0.790, 0.833]``: median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def answer(rows: Sequence[dict[str, Any]], checkpoints: list[int], name: str) -> str:
    """After how many evaluations an algorithm's median reaches the final median of mergekit-evolve, same seeds only."""
    both = {row["seed"] for row in rows if row["algorithm"] == MERGEKIT}
    both &= {row["seed"] for row in rows if row["algorithm"] == name}
    if not both:
        return f"No seed has runs of both {MERGEKIT} and {name} yet."
    shared = [row for row in rows if row["seed"] in both]
    goal = float(np.median(series(shared, MERGEKIT, "test")[:, -1]))
    medians = np.median(series(shared, name, "test"), axis=0)
    reached = [count for count, value in zip(checkpoints, medians, strict=False) if value >= goal]
    when = f"after {reached[0]} evaluations" if reached else f"not within {checkpoints[len(medians) - 1]} evaluations"
    return (
        f"{MERGEKIT} ends at a median of {goal:.3f} on test documents after {checkpoints[-1]} evaluations "
        f"({len(both)} seeds); {name} reaches it {when} (target: {checkpoints[-1] // 3})."
    )


def draw(rows: Sequence[dict[str, Any]], folder: Path, prefix: str) -> list[Path]:
    """Draw medians and quartiles of every algorithm into ``folder``, eight in a figure at most; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names_in(rows)
    anchors = [name for name in ANCHORS if name in names]
    others, size = [name for name in names if name not in anchors], MOST_LINES - len(anchors)
    paths = []
    for part in range(0, max(len(others), 1), size):
        suffix = f"_{part // size + 1}" if part else ""
        paths += _draw_part(rows, [*anchors, *others[part : part + size]], folder, prefix, suffix)
    return paths


def _draw_part(
    rows: Sequence[dict[str, Any]], names: Sequence[str], folder: Path, prefix: str, suffix: str
) -> list[Path]:
    paths = []
    for measure, against, title in FIGURES if rows else ():
        lines = []
        for name in names:
            low, median, high = np.quantile(series(rows, name, measure), [0.25, 0.5, 0.75], axis=0)
            x = np.median(series(rows, name, against), axis=0)
            lines.append(Line(name, x, low, median, high))
        paths.append(folder / f"{prefix}_{measure}_{against.removeprefix('cpu_')}{suffix}.svg")
        axis = "CPU seconds" if against == "cpu_seconds" else against
        paths[-1].write_text(draw_chart(lines, title=title, x_label=axis), encoding="utf-8")
    return paths
