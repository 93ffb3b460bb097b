"""Operators that see of a tensor only the inner products of its task vectors: what each source's share is.

All of them end in one linear pass, so that a candidate costs what task arithmetic does once the products are known.
Everything here is float64 on tables of (experts, experts).
"""

from __future__ import annotations

import numpy as np


def cosines(products: np.ndarray) -> np.ndarray:
    """Return the cosines, float64 (K, K), of vectors with these inner products (K, K); 0 where a vector is zero."""
    norms = np.sqrt(np.diag(products))
    norms = np.where(norms > 0.0, norms, 1.0)
    cosine: np.ndarray = np.clip(products / norms[:, None] / norms, -1.0, 1.0)
    return cosine


def model_stock_share(products: np.ndarray) -> float:
    """Return ``t = K c / (1 + (K - 1) c)``, c the mean cosine of all pairs or 0 if it is negative (Jang et al. 2024).

    With c < 0 the formula leaves [0, 1]: below 0, or above 1 once it has passed its pole at c = -1 / (K - 1).
    Task vectors that disagree say nothing of where their centre is, so the base is kept.
    """
    count = len(products)
    pairs = cosines(products)[np.triu_indices(count, 1)]
    cosine = max(0.0, float(pairs.mean()))
    return count * cosine / (1.0 + (count - 1) * cosine)
