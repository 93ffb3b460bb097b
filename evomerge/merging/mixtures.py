"""The mixtures of experts in a live model: which tensors of its files hold what of which expert.

transformers stacks the experts of a layer along the first dimension of a few parameters, whatever the files do: some
have a tensor for every matrix of every expert, some the stacks themselves. Where the units of an expert lie follows
from what the stack says of itself (transposed, gate and up interleaved): nothing here knows an architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evomerge.errors import BadSource
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.exhibit import Exhibit

EXPERTS = "experts"  # what transformers calls the module with the stacks


@dataclass(frozen=True)
class Matrix:
    """One matrix or bias of every expert of a layer.

    Attributes:
        names: a tensor of the files for each expert, or one that holds those of all along its first dimension.
        shape: of one expert's, written so that ``side`` counts its hidden units.
        side: None for a bias of the stream, which has no units.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    side: int | None

    @property
    def stacked(self) -> bool:
        """Whether one tensor holds those of all experts."""
        return len(self.names) == 1

    def of(self, checkpoint: Checkpoint, expert: int) -> Tensor:
        """Return the matrix of one expert in `shape`, a view on the file."""
        tensor = checkpoint.tensor(self.names[0])[expert] if self.stacked else checkpoint.tensor(self.names[expert])
        return tensor.view(self.shape)


@dataclass(frozen=True)
class Mixture:
    """One layer's experts and what chooses among them.

    Attributes:
        module: path in the live model of the module that holds both.
        router: name of the child of ``module`` that gives every expert a logit.
        routers: tensors of the files with a row for every expert, weight first.
    """

    module: str
    router: str
    routers: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    experts: int

    @property
    def units(self) -> int:
        """How many hidden units an expert has."""
        return next(each.shape[each.side] for each in self.matrices if each.side is not None)


def mixtures_of(exhibit: Exhibit) -> tuple[Mixture, ...]:
    """Return the mixtures of the model, in the order of its layers.

    Raises:
        BadSource: there is none, they differ in their number of experts, or one is not understood.
    """
    path = exhibit.checkpoints[0].path
    found = []
    for name, module in exhibit.model.named_modules():
        if name.rpartition(".")[2] == EXPERTS and hasattr(module, "is_transposed"):
            found.append(_mixture(exhibit, name.rpartition(".")[0], module))
    if not found:
        raise BadSource(
            f"{path}: no layer has a stack of experts as transformers makes them; there is nothing to merge"
        )
    if len({mixture.experts for mixture in found}) > 1:
        numbers = sorted({mixture.experts for mixture in found})
        raise BadSource(f"{path}: its layers have different numbers of experts ({numbers}); one for all is expected")
    return tuple(found)


def _mixture(exhibit: Exhibit, home: str, experts: Any) -> Mixture:
    count = int(experts.num_experts)
    matrices = [m for name, p in experts.named_parameters() for m in _matrices(exhibit, experts, name, p)]
    routers = [
        (name, child)
        for name, child in exhibit.model.get_submodule(home).named_children()
        if child is not experts and getattr(child, "weight", None) is not None and child.weight.shape[0] == count
    ]
    path = exhibit.checkpoints[0].path
    if len(routers) != 1 or routers[0][1].weight.dim() != 2:
        raise BadSource(f"{path}: {home} has no router of one weight with {count} rows: it is not known what chooses")
    name, router = routers[0]
    parameters = dict(router.named_parameters())
    if not parameters.keys() <= {"weight", "bias"}:
        strange = min(parameters.keys() - {"weight", "bias"})
        raise BadSource(f"{path}: the router {home}.{name} has a {strange}, of which it is not known what it does")
    known = [key for key in ("weight", "bias") if key in parameters]
    own = tuple(_only(exhibit, f"{home}.{name}.{key}", parameters[key]) for key in known)
    return Mixture(home, name, own, tuple(matrices), count)


def _matrices(exhibit: Exhibit, experts: Any, name: str, parameter: Tensor) -> list[Matrix]:
    """Return what the files have of one parameter of the stack."""
    count = parameter.shape[0]
    names = [part for part, _ in exhibit.parts(parameter)]
    shape, side = _units(experts, name, tuple(parameter.shape[1:]), exhibit.checkpoints[0])
    if len(names) == 1:
        return [Matrix((names[0],), shape, side)]
    kinds, rest = divmod(len(names), count)
    if rest or kinds not in (1, 2) or side is None:
        raise BadSource(f"{exhibit.checkpoints[0].path}: {len(names)} tensors make up {name} of {count} experts")
    if kinds == 2:  # the matrices of gate and up lie in files of their own
        shape, side = shape[1:], side - 1
    return [Matrix(tuple(names[kind::kinds]), shape, side) for kind in range(kinds)]


def _units(
    experts: Any, name: str, shape: tuple[int, ...], checkpoint: Checkpoint
) -> tuple[tuple[int, ...], int | None]:
    """Return the shape of one expert's ``name`` in which one dimension counts units, and which one that is."""
    into, bias = name.removesuffix("_bias") != "down_proj", name.endswith("_bias")
    if name not in ("gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias"):
        raise BadSource(f"{checkpoint.path}: its experts have a {name}, of which it is not known where units lie")
    if not into:
        return shape, None if bias else int(not experts.is_transposed)
    side = 0 if bias or not experts.is_transposed else 1  # where gate and up, or up alone, have their units
    if not name.startswith("gate_up"):
        return shape, side
    pair = (2, shape[side] // 2) if experts.is_concatenated else (shape[side] // 2, 2)
    return (*shape[:side], *pair, *shape[side + 1 :]), side + int(experts.is_concatenated)


def _only(exhibit: Exhibit, what: str, parameter: Tensor) -> str:
    names = [name for name, _ in exhibit.parts(parameter)]
    if len(names) != 1:
        raise BadSource(f"{exhibit.checkpoints[0].path}: {what} is not one tensor of the files")
    return names[0]
