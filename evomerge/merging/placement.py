"""Where the tensors of a model lie that is spread over several devices: pure data, from sizes and free memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from evomerge.errors import NotEnoughRoom
from search_spaces.tensors import by_layer, in_stack, layer_of

Devices = str | tuple[str, ...]  # one device, or several over which the layers of a model are spread


@dataclass(frozen=True)
class Placement:
    """Neighbouring layers on each device; what is in no layer (embeddings, final norm, head) on the first one.

    So inputs and outputs of the model are on the first device, and an embedding that is also the head needs no copy.

    Attributes:
        devices: their names.
        stops: of each device the number of the layer behind its last one.
        used: bytes of the tensors on each.
        rooms: bytes that were free on each.
    """

    devices: tuple[str, ...]
    stops: tuple[int, ...]
    used: tuple[int, ...]
    rooms: tuple[int, ...]

    def position(self, tensor: str) -> int:
        """Return the position of the device of ``tensor``."""
        if not in_stack(tensor):
            return 0
        layer = layer_of(tensor, self.stops[-1])
        return next(number for number, stop in enumerate(self.stops) if layer < stop)

    def lines(self) -> list[str]:
        """Return what lies where, in words, a line for each device."""
        ranges = pairwise((0, *self.stops))
        found = []
        for number, (start, stop) in enumerate(ranges):
            what = ["embeddings, norm, head"] * (number == 0) + [f"layers {start} to {stop - 1}"] * (start < stop)
            size = f"{self.used[number] / 2**30:.2f} of {self.rooms[number] / 2**30:.2f} GiB free"
            found.append(f"{self.devices[number]} {size}: {', '.join(what) or 'nothing'}")
        return found


def gpu_names(gpus: float) -> tuple[str, ...]:
    """Return the names of the first ``gpus`` devices that this process sees."""
    return tuple(f"cuda:{number}" for number in range(int(gpus)))


def place(sizes: Mapping[str, int], *, layers: int, rooms: Sequence[tuple[str, int]]) -> Placement:
    """Return the placement whose fullest device, by the share of its room, is as empty as can be.

    Args:
        sizes: bytes of each tensor by its name, of a stack of ``layers``.
        rooms: name and free bytes of each device, in the order of the layers.

    Raises:
        NotEnoughRoom: no placement leaves every device within its room.
    """
    stacked = by_layer(sizes, layers)
    of_layers = [sum(sizes[name] for name in stacked.get(layer, ())) for layer in range(layers)]
    outside = sum(size for name, size in sizes.items() if not in_stack(name))
    ends = [0, *accumulate(of_layers)]

    def used(device: int, start: int, stop: int) -> int:
        return (outside if device == 0 else 0) + ends[stop] - ends[start]

    def filled(device: int, start: int, stop: int) -> float:
        return used(device, start, stop) / (rooms[device][1] or 0.5)

    def ways(device: int, stop: int) -> Iterator[tuple[float, tuple[int, ...]]]:
        for start, (fullest, stops) in enumerate(best[: stop + 1]):
            yield max(fullest, filled(device, start, stop)), (*stops, stop)

    # best[n]: how full the fullest device is at least when the first n layers are placed, and the stops that reach it
    best: list[tuple[float, tuple[int, ...]]] = [(filled(0, 0, stop), (stop,)) for stop in range(layers + 1)]
    for device in range(1, len(rooms)):
        best = [min(ways(device, stop)) for stop in range(layers + 1)]
    fullest, stops = best[layers]
    if fullest > 1.0:
        raise _too_large(outside, of_layers, rooms)
    return Placement(
        devices=tuple(name for name, _ in rooms),
        stops=stops,
        used=tuple(used(device, *span) for device, span in enumerate(pairwise((0, *stops)))),
        rooms=tuple(room for _, room in rooms),
    )


def _too_large(outside: int, of_layers: Sequence[int], rooms: Sequence[tuple[str, int]]) -> NotEnoughRoom:
    needed, largest = outside + sum(of_layers), max(of_layers, default=0)
    free = ", ".join(f"{room / 2**30:.2f} GiB on {name}" for name, room in rooms)
    return NotEnoughRoom(
        f"cluster.gpus_per_worker: one copy of the model needs {needed / 2**30:.2f} GiB: {outside / 2**30:.2f} GiB of "
        f"embeddings, norm and head on the first device, and {len(of_layers)} layers of up to {largest / 2**30:.2f} "
        f"GiB, none of which is split; free are {free}; give each worker more GPUs, or larger ones"
    )
