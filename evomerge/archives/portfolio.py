"""A portfolio of models by quality and behaviour, as CycleQD keeps it (Kuroki et al. 2025, ICLR, arXiv 2410.14735).

One archive per objective: that objective is the quality, the others are the behaviour, cut into bins. Each cell keeps
the best by quality. Everything follows from the values, so a record gives the portfolio of its search.
"""

from __future__ import annotations

import numpy as np

from evomerge.archives.pareto import Matrix, Positions

BINS = 15


def elites(scaled: Matrix, quality: int, bins: int) -> Positions:
    """Return the positions of the best row of each occupied cell of one archive.

    Args:
        scaled: (points, objectives) float64, more is better; behaviours outside [0, 1] count as its ends.
        quality: the objective that is quality; each other one is cut into ``bins`` equal parts of [0, 1].

    Returns:
        (cells,) positions in ascending order; of equal rows the first is kept.
    """
    if len(scaled) == 0:
        return np.zeros(0, dtype=np.intp)
    cells = np.clip((np.delete(scaled, quality, axis=1) * bins).astype(int), 0, bins - 1)
    order = np.lexsort((np.arange(len(scaled)), -scaled[:, quality]))
    _, first = np.unique(cells[order], axis=0, return_index=True)
    return np.sort(order[first])


def portfolio(scaled: Matrix, bins: int) -> Positions:
    """Return the positions of the rows that any of the objectives' archives keeps, in ascending order."""
    if len(scaled) == 0:
        return np.zeros(0, dtype=np.intp)
    return np.unique(np.concatenate([elites(scaled, quality, bins) for quality in range(scaled.shape[1])]))
