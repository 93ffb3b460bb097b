"""A line chart with bands as SVG text: medians and quartiles, without a library that draws into files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 160, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")  # Okabe and Ito


class Line(NamedTuple):
    """One line: (points,) places, medians and quartiles."""

    name: str
    x: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray


class _Axes:
    def __init__(self, lines: Sequence[Line]) -> None:
        self.x = (0.0, max(float(line.x.max()) for line in lines))
        low = min(float(line.low.min()) for line in lines)
        high = max(float(line.high.max()) for line in lines)
        margin = 0.05 * (high - low) or 0.05
        self.y = (low - margin, high + margin)

    def points(self, x: np.ndarray, y: np.ndarray) -> str:
        """SVG coordinates of (points,) values."""
        across = LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))


def draw_chart(lines: Sequence[Line], *, title: str, x_label: str) -> str:
    """Return the chart of ``lines`` as an SVG document."""
    axes = _Axes(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>',
        _text(LEFT, 24, title, "start"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, "middle"),
        *_grid(axes),
    ]
    for position, line in enumerate(lines):
        colour = COLOURS[position % len(COLOURS)]
        band = axes.points(np.r_[line.x, line.x[::-1]], np.r_[line.low, line.high[::-1]])
        parts.append(f'<polygon points="{band}" fill="{colour}" opacity="0.15"/>')
        middle = axes.points(line.x, line.median)
        parts.append(f'<polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = TOP + 10 + 20 * position
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{at - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 32, at, line.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(axes: _Axes) -> list[str]:
    parts = []
    for x in np.linspace(*axes.x, 6):
        across = float(axes.points(np.array([x]), np.array([axes.y[0]])).split(",")[0])
        parts.append(_text(across, HEIGHT - BOTTOM + 18, f"{x:.0f}", "middle"))
    for y in np.linspace(*axes.y, 6):
        down = float(axes.points(np.array([0.0]), np.array([y])).split(",")[1])
        parts.append(f'<path d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, down + 4, f"{y:.2f}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
