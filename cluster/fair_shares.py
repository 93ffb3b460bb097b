"""How pools share one cluster: equal shares of the scarcest resource that each needs (dominant resource fairness).

Ghodsi et al., "Dominant Resource Fairness" (NSDI 2011), algorithm 1, with whole workers: again and again the pool with
the smallest share gets one more worker, until nothing fits. Every pool computes the same shares from the same facts, so
nobody has to decide for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUNDING = 1e-9  # 0.1 CPU fits ten times into one, whatever binary floats say
DEVICE = "GPU"  # the resource of which a part is a part of one piece


@dataclass(frozen=True)
class Claim:
    """What one pool asks for.

    Attributes:
        pool: its name, unlike any other's.
        needs: what each of its workers reserves, by resource (``CPU``, ``GPU``); one is above 0.
        held: workers that it has a place for now.
        most: workers that it can use.
    """

    pool: str
    needs: Mapping[str, float]
    held: int = 0
    most: float = math.inf


def fair_shares(claims: Sequence[Claim], whole: Mapping[str, float]) -> dict[str, int]:
    """Return how many workers each pool shall have of ``whole``, which all of them divide.

    Between pools with equal shares one that holds more than its share so far comes first: a worker that would only
    change hands stays, and what was shared so stays so.
    """
    left = dict(whole)
    shares = {claim.pool: 0 for claim in claims}
    active = list(claims)

    def order(claim: Claim) -> tuple[float, bool, str]:
        parts = (shares[claim.pool] * need / whole.get(kind, 0.0) for kind, need in claim.needs.items() if need > 0)
        return (max(parts) if shares[claim.pool] else 0.0, shares[claim.pool] >= claim.held, claim.pool)

    while active:
        poorest = min(active, key=order)
        fits = all(left.get(kind, 0.0) + ROUNDING >= need for kind, need in poorest.needs.items())
        if not fits or shares[poorest.pool] >= poorest.most:
            active.remove(poorest)
            continue
        shares[poorest.pool] += 1
        for kind, need in poorest.needs.items():
            left[kind] = left.get(kind, 0.0) - need
    return shares


def room(left: Mapping[str, float], needs: Mapping[str, float], offers: Mapping[str, float] | None = None) -> int:
    """Return how many workers with ``needs`` (one is above 0) fit where ``left`` is free of ``offers``, one node's.

    Part of a GPU is part of one device: where 0.4 are needed, a GPU has room for two workers, and two have room for
    four. Which devices are in use is not known, so the fewer count: as if those in use were used by such workers, or
    as if as many as possible were free.
    """
    found = [int(left.get(kind, 0.0) / need + ROUNDING) for kind, need in needs.items() if need > 0]
    each = needs.get(DEVICE, 0.0)
    if 0.0 < each < 1.0:
        free = left.get(DEVICE, 0.0)
        found.append(_on_devices(free, each))
        if offers is not None:
            there = (offers.get(DEVICE, 0.0) - free) / each  # workers like this one, if it is a whole number
            if abs(there - round(there)) < 1e-3:
                found.append(max(0, _on_devices(offers.get(DEVICE, 0.0), each) - round(there)))
    return min(found)


def _on_devices(free: float, each: float) -> int:
    """How many parts of size ``each`` < 1 fit into whole devices and the rest of one, which are ``free`` together."""
    whole, rest = divmod(free + ROUNDING, 1.0)
    return int(whole) * int(1.0 / each + ROUNDING) + int(rest / each + ROUNDING)
