"""Fewer experts for a mixture-of-experts model: M-SMoE, groups of similar experts merged into one.

After Li et al. 2024 ("Merge, Then Compress"): experts that a router treats alike are grouped around the most frequent
ones, the hidden units of members are brought into the order of the dominant expert (weight matching), and a group
becomes the average of its members weighted by how often they are chosen. The paper keeps the router and lets experts
share weights; here the router gets a row for every group, so that an ordinary, smaller checkpoint is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import BadSource, NotEnoughRoom, UserMistake
from evomerge.merging.checkpoint import Checkpoint, text_config
from evomerge.merging.exhibit import Exhibit
from evomerge.merging.matching import best_assignment, rows_of
from evomerge.merging.mixtures import Mixture, mixtures_of
from evomerge.merging.observation import default_device
from evomerge.merging.resident import available_bytes
from evomerge.merging.routing import Group, Routing, groups_of, observe, reroute
from evomerge.merging.sources import fingerprint
from search_spaces.calibration import Calibration
from search_spaces.recipe import Recipe, Source, alone

_FORMAT = "evomerge-compression-1"
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # keys of a config.json
Progress = Callable[[int, int], None]  # runs of a prompt and layers: done, all


@dataclass(frozen=True)
class Layer:
    """What becomes of one mixture.

    Attributes:
        groups: of its experts, in the order in which they are written.
        orders: for each expert that is not dominant, the units that come to the places of the dominant one's.
        routers: the router's tensors, with a row for each group.
    """

    mixture: Mixture
    routing: Routing
    groups: tuple[Group, ...]
    orders: Mapping[int, Sequence[int]]
    routers: tuple[Tensor, ...]

    @cached_property
    def weights(self) -> np.ndarray:
        """What each expert weighs in its group, float64 (E,): alike in a group that no prompt reached."""
        found = np.empty(self.mixture.experts)
        for group in self.groups:
            members = list(group.members)
            counts = self.routing.counts[members]
            found[members] = counts / counts.sum() if counts.any() else 1.0 / len(members)
        return found


@dataclass(frozen=True)
class Compression:
    """The groups of all layers, and what they follow from.

    Attributes:
        model: digest of the content of the model.
        reference: of the model whose experts decided the groups and orders.
        calibration: the prompts that both were run on.
        experts: how many are left in a layer.
    """

    model: str
    reference: str
    calibration: Calibration
    experts: int
    layers: tuple[Layer, ...]

    def to_json(self) -> str:
        """Return the record."""
        layers = [
            {
                "module": layer.mixture.module,
                "groups": [{"dominant": group.dominant, "members": group.members} for group in layer.groups],
                "frequencies": layer.routing.frequencies.tolist(),
            }
            for layer in self.layers
        ]
        value = {
            "format": _FORMAT,
            "model": self.model,
            "reference": self.reference,
            "prompts": self.calibration.digest,
            "experts": self.experts,
            "layers": layers,
        }
        return json.dumps(value, separators=(",", ":"))

    @property
    def unreached(self) -> int:
        """How many experts, of all layers, no prompt reached."""
        return int(sum((layer.routing.counts == 0).sum() for layer in self.layers))


def check_count(config: dict[str, Any], path: Path, experts: int) -> None:
    """Refuse a number of experts that the model of ``config`` cannot be brought to.

    Raises:
        BadSource: the config names no number of experts, or a rule that fewer would break.
        UserMistake: the number is too small or too large.
    """
    text = text_config(config)
    before = next((text[key] for key in COUNTS if isinstance(text.get(key), int) and text[key] > 0), None)
    if before is None:
        raise BadSource(f"{path}: config.json names no number of experts: the model is no mixture of experts")
    if (text.get("n_group") or 1) > 1:
        raise BadSource(f"{path}: its router chooses among groups of experts (n_group); that is not supported")
    if not 0 < experts <= before:
        raise UserMistake(f"--experts {experts}: {path} has {before} a layer; expected 1 to {before}")


def plan(
    model: Checkpoint, reference: Checkpoint, calibration: Calibration, experts: int, *, progress: Progress | None
) -> Compression:
    """Return what becomes of ``model`` with ``experts`` experts a layer.

    Groups, orders and weights follow from ``reference``, which may be the model itself. Models that are compressed like
    one another merge like one another: what is made of each expert is linear in the weights.

    Raises:
        UserMistake: every token needs more experts than would be left.
        BadSource: the model is no mixture of experts, or one that is not understood; or the two do not fit.
        BadRecipe: the prompts are of another vocabulary.
        NotEnoughRoom: the model, or what is made of it, does not fit into memory.
    """
    check_count(model.config, model.path, experts)
    done = count(1)

    def step() -> None:
        if progress is not None:
            progress(next(done), 2 * len(calibration.samples) + model.layers)

    seen = _observed(model, reference, calibration, experts, step)
    layers = []
    for mixture, routing, groups, routers in seen:
        orders = _orders(reference, mixture, groups)
        layers.append(Layer(mixture, routing, groups, orders, routers))
        step()
    for _ in range(model.layers - len(seen)):  # those without experts
        step()
    digests = fingerprint(model.path), fingerprint(reference.path)
    return Compression(*digests, calibration, experts, tuple(layers))


_Seen = tuple[Mixture, Routing, tuple[Group, ...], tuple[Tensor, ...]]


def _observed(
    model: Checkpoint, reference: Checkpoint, calibration: Calibration, experts: int, step: Callable[[], None]
) -> list[_Seen]:
    """Run the prompts through both: the reference decides groups, the model needs routers for them."""
    checkpoints = [model, reference]
    sources = tuple(Source(path=str(each.path)) for each in checkpoints)
    recipe = Recipe(sources=sources, dtype="float32", body=alone(0, 2))
    exhibit = Exhibit(recipe, checkpoints, device=default_device())
    exhibit.check_vocabulary(calibration)
    mixtures = mixtures_of(exhibit)
    chosen = getattr(exhibit.model.config.get_text_config(decoder=True), "num_experts_per_tok", None)
    if chosen is None:
        raise BadSource(f"{model.path}: config.json does not say through how many experts a token goes")
    if experts < chosen:
        raise UserMistake(
            f"--experts {experts}: every token goes through {chosen} (num_experts_per_tok); expected as many at least"
        )
    _check_room(mixtures, exhibit.bytes if exhibit.device.type == "cpu" else 0)
    exhibit.show(1)
    routings = observe(exhibit, mixtures, calibration.samples, step)
    groups = [groups_of(routing, experts) for routing in routings]
    exhibit.show(0)
    routers = reroute(exhibit, mixtures, groups, calibration.samples, step)
    return list(zip(mixtures, routings, groups, routers, strict=True))


def _check_room(mixtures: Sequence[Mixture], held: int) -> None:
    """Refuse experts that cannot be matched even when the ``held`` bytes of the model are free again."""
    free = available_bytes() + held
    for mixture in mixtures:
        elements = sum(math.prod(matrix.shape) for matrix in mixture.matrices)
        needed = 8 * (2 * elements + 2 * mixture.units**2)  # two experts, what units gain, the solver's copy
        if needed > free:
            raise NotEnoughRoom(
                f"matching the {mixture.units} units of two experts needs {needed / 2**30:.2f} GiB, "
                f"{free / 2**30:.2f} GiB are available"
            )


def _orders(model: Checkpoint, mixture: Mixture, groups: Sequence[Group]) -> dict[int, list[int]]:
    """Return for every expert that is merged into another the order of units in which it is nearest to that one."""
    units, matrices = mixture.units, [each for each in mixture.matrices if each.side is not None]
    found = {}
    for group in groups:
        for expert in group.members:
            if expert != group.dominant:
                similarity = torch.zeros((units, units), dtype=torch.float64)
                for matrix in matrices:
                    assert matrix.side is not None
                    own, other = (rows_of(matrix.of(model, e), matrix.side, units) for e in (group.dominant, expert))
                    similarity.addmm_(own, other.T)
                found[expert] = best_assignment(similarity.numpy()).tolist()
    return found
