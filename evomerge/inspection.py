"""What was found about experts before a search: how far each is from the base, and what that says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.parameter_space import TENSOR_GROUPS
from search_spaces.patterns import matches
from search_spaces.tensors import in_stack, layer_of

INSPECTION = "inspection"  # key of a recorded plan
PARTS = ("self_attn", "mlp", "rest")
SUMS = ("base", "expert", "step")  # squares of the base's weights, of the expert's, of their differences
_UNRELATED = 0.5  # cosine below which weights have nothing to do with the base's; fine-tunes lie above 0.95
_RELATED = 0.9


def place_of(tensor: str, layers: int) -> tuple[int, int]:
    """Return the position in `PARTS` and the column of a tensor: 0 before the layers, ``layers + 1`` behind them."""
    if not in_stack(tensor):
        return PARTS.index("rest"), 0 if layer_of(tensor, 2) == 0 else layers + 1
    part = next((i for i, part in enumerate(PARTS[:-1]) if matches(tensor, TENSOR_GROUPS[part])), PARTS.index("rest"))
    return part, layer_of(tensor, layers) + 1


@dataclass(frozen=True)
class Distance:
    """Between an expert and the base, over some of their tensors.

    Attributes:
        relative: ``|theta_i - theta_0| / |theta_0|``; 0 where both are zero.
        cosine: between the weights; 1 where both are equal.
    """

    relative: float
    cosine: float

    @classmethod
    def of(cls, sums: np.ndarray) -> Distance | None:
        """Return the distance that sums of squares (3,), in the order of `SUMS`, mean; None where all are zero."""
        base, expert, step = sums.tolist()
        if base == expert == 0.0:
            return None
        norms = (base * expert) ** 0.5
        cosine = (base + expert - step) / (2.0 * norms) if norms else 0.0
        return cls((step / base) ** 0.5 if base else float("inf"), min(1.0, max(-1.0, cosine)))


@dataclass(frozen=True)
class Inspection:
    """The experts beside their base.

    Attributes:
        experts: short names.
        tied: whether the models' head is their embedding matrix.
        tensors: that are merged.
        unchanged: tensors of each expert that equal the base's.
        sums: float64 (experts, parts, layers + 2, 3), in the orders of `PARTS` and `SUMS`; see `place_of`.
    """

    experts: tuple[str, ...]
    tied: bool
    tensors: int
    unchanged: tuple[int, ...]
    sums: np.ndarray

    @property
    def layers(self) -> int:
        """Number of layers of the models."""
        return int(self.sums.shape[2]) - 2

    def whole(self, expert: int) -> Distance:
        """Return the distance of all tensors of an expert."""
        found = Distance.of(self.sums[expert].sum((0, 1)))
        return found or Distance(0.0, 1.0)

    def part(self, expert: int, part: int) -> Distance | None:
        """Return the distance of one of `PARTS`; None if the models have no such tensors."""
        return Distance.of(self.sums[expert, part].sum(0))

    def distances(self) -> np.ndarray:
        """Return the relative distance of every cell: float64 (experts, parts, layers + 2), NaN for empty cells."""
        base, _, step = np.moveaxis(self.sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = np.sqrt(step / base)
        return found

    def findings(self, expert: int) -> list[str]:
        """Return what stands out, in words."""
        found, same = self._alarms(expert), self.unchanged[expert]
        return [*found, f"{same} of {self.tensors} tensors equal the base's"] if 0 < same < self.tensors else found

    def _alarms(self, expert: int) -> list[str]:
        """Return what makes a whole expert doubtful."""
        if self.unchanged[expert] == self.tensors:
            return ["is identical to the base: it adds nothing to a merge"]
        return self._kinship(expert)

    def _kinship(self, expert: int) -> list[str]:
        attention, mlp = (self.part(expert, part) for part in (0, 1))
        if attention is None or mlp is None or attention.cosine >= _UNRELATED:
            return []
        if mlp.cosine >= _RELATED:
            return [
                f"looks locked: its attention shares nothing with the base's (cosine {attention.cosine:.2f}), its mlp "
                f"does ({mlp.cosine:.2f}). Query and key, or value and output, were transformed together, which keeps "
                "the function and makes merging destroy it; ask its authors for the plain weights"
            ]
        if mlp.cosine < _UNRELATED:
            return [
                f"is no fine-tune of this base (cosine of attention {attention.cosine:.2f}, of mlp {mlp.cosine:.2f}): "
                "merges with it will not work"
            ]
        return []

    @property
    def warnings(self) -> list[str]:
        """What to think of before a search: the findings that are about a whole expert."""
        return [f"{name} {alarm}" for expert, name in enumerate(self.experts) for alarm in self._alarms(expert)]

    def to_json(self) -> dict[str, Any]:
        """Return distances, cosines and findings of every expert as JSON types."""
        return {
            "layers": self.layers,
            "tied_embeddings": self.tied,
            "experts": [self._expert_json(expert) for expert in range(len(self.experts))],
        }

    def _expert_json(self, expert: int) -> dict[str, Any]:
        whole = self.whole(expert)
        cells = {
            part: [_json(Distance.of(sums)) for sums in self.sums[expert, number]] for number, part in enumerate(PARTS)
        }
        return {
            "name": self.experts[expert],
            "distance": whole.relative,
            "cosine": whole.cosine,
            "parts": {part: _json(self.part(expert, number)) for number, part in enumerate(PARTS)},
            "blocks": cells,  # before the layers, each layer, behind them
            "unchanged_tensors": self.unchanged[expert],
            "findings": self.findings(expert),
        }

    def record(self) -> dict[str, Any]:
        """Return everything as JSON types; `restore` reads it back."""
        return {
            "experts": list(self.experts),
            "tied": self.tied,
            "tensors": self.tensors,
            "unchanged": list(self.unchanged),
            "sums": self.sums.tolist(),
        }

    @classmethod
    def restore(cls, value: dict[str, Any]) -> Inspection:
        """Return what `record` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        sums = np.array(value["sums"], dtype=np.float64)
        experts, unchanged = tuple(value["experts"]), tuple(value["unchanged"])
        if sums.ndim != 4 or sums.shape[1::2] != (len(PARTS), len(SUMS)) or not len(sums) == len(unchanged):
            raise ValueError(f"sums of shape {sums.shape}")
        return cls(experts, bool(value["tied"]), int(value["tensors"]), unchanged, sums)

    def named(self, experts: Sequence[str]) -> Inspection:
        """Return the same with other short names."""
        return Inspection(tuple(experts), self.tied, self.tensors, self.unchanged, self.sums)


def _json(distance: Distance | None) -> dict[str, float] | None:
    return None if distance is None else {"distance": distance.relative, "cosine": distance.cosine}
