"""A campaign of trials, drawn from one seed: the same number always gives the same plan."""

import numpy as np

from .trial import Fault, Plan

# What can strike where, as often as it is named.
KINDS = {
    "in_process": ("driver", "driver", "driver", "twice", "race", "disk", "disk", "clock", "hang"),
    "postgresql": ("driver", "twice", "race", "server", "server", "server", "clock"),
    "ray": ("driver", "worker", "stop", "clock"),
    "cluster": ("driver", "worker", "stop", "clock", "node", "raylet", "blink", "partition"),
}
FAULTS = {"in_process": 12, "postgresql": 10, "ray": 6, "cluster": 8}
EVALUATIONS = {"in_process": 400, "postgresql": 400, "ray": 400, "cluster": 1000}
WORKERS = {"in_process": (1, 1, 3, 8), "postgresql": (1, 3), "ray": (2,), "cluster": (4,)}
CYCLE = ("in_process", "ray", "postgresql", "cluster", "in_process")
ANY_ORDER = ("sobol", "random")  # their asks do not depend on what they are told
ONE_ORDER = (*ANY_ORDER, "cma_es", "nsga2")
FARTHEST_JUMP_SECONDS = 1e7
LONGEST_DELAY_SECONDS = 0.1  # a fault strikes at any moment within several evaluations


def make_plan(seed: int, number: int, *, disk_is_real: bool) -> Plan:
    """Return trial ``number`` of the campaign of ``seed``."""
    rng = np.random.default_rng([seed, number])
    platform = CYCLE[number % len(CYCLE)]
    kinds = list(rng.choice(KINDS[platform], FAULTS[platform]))
    if platform == "ray":
        kinds[-1] = "raylet"  # a private cluster does not outlive it
    if not disk_is_real:
        kinds = ["pages" if kind == "disk" else kind for kind in kinds]
    workers = int(rng.choice(WORKERS[platform]))
    in_order = workers == 1 and "hang" not in kinds
    optimizer = rng.choice(ONE_ORDER if in_order else ANY_ORDER)
    faults = tuple(
        Fault(str(kind), int(rng.integers(1, 13)), float(rng.uniform(0.0, LONGEST_DELAY_SECONDS))) for kind in kinds
    )
    jumps = tuple(rng.uniform(-FARTHEST_JUMP_SECONDS, FARTHEST_JUMP_SECONDS, len(kinds)).tolist())
    settings = (("kind", str(optimizer)), ("seed", int(rng.integers(4))))
    elastic = platform == "cluster" and bool(rng.integers(2))
    return Plan(platform, settings, workers, EVALUATIONS[platform], faults, jumps, elastic)
