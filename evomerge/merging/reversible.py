"""Reversible merging as an export: one basis for all experts, and for each the coefficients that restore it.

After RMM (reversible model merging): the rows of all task vectors of a matrix, stacked, have ``T ~ C B`` with the
``rank`` largest right singular vectors as B, (rank, columns). An expert is then ``theta_0 + C_i B``, which is low-rank:
it opens as an adapter does, and merges as any expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.atomic import check_free, writing_folder
from evomerge.errors import BadRecipe
from evomerge.merging.adapter import Adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import DTYPES
from evomerge.merging.export import open_merge
from evomerge.merging.sources import BASIS, COEFFICIENTS, fingerprint
from evomerge.merging.spectral import shared_basis
from search_spaces.recipe import Recipe, Source, alone

Progress = Callable[[int, int], None]


@dataclass
class _Expert:
    """What is written of one expert, and how far it is from what it was: squared norms."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    lost: float = 0.0
    whole: float = 0.0

    @property
    def error(self) -> float:
        """The norm of what cannot be restored over that of the task vector."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0


def write_reversible(recipe: Recipe, to: Path, *, rank: int | None, progress: Progress | None = None) -> list[float]:
    """Write the experts of ``recipe`` to folder ``to`` as a basis, their coefficients and recipes that restore them.

    Matrices are cut to ``rank`` directions, by default all that adapters have; other tensors are kept as they are.
    Everything has the recipe's dtype. What its body does with the experts does not matter.

    Returns:
        For every expert the norm of what is lost, rounding included, over the norm of its task vector.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        BadRecipe: there is no base, the recipe has a vocabulary of its own, or whole models are given without a rank.
        BadSource: the sources have changed or do not fit.
    """
    check_free(to)
    if recipe.vocabulary is not None:
        raise BadRecipe(
            "sources in another vocabulary are no steps from the base that a basis holds; export a checkpoint"
        )
    checkpoints, engine = open_merge(recipe.model_copy(update={"body": alone(0, len(recipe.sources))}))
    if recipe.base is None:
        raise BadRecipe("a shared basis is of task vectors: the recipe needs a base")
    base, experts = checkpoints[recipe.base], [checkpoints[position] for position in recipe.experts]
    if rank is None and not all(isinstance(expert, Adapter) for expert in experts):
        raise BadRecipe("a basis of all directions of whole models is as large as they are; give --rank")
    bases: dict[str, Tensor] = {}
    written = [_Expert() for _ in experts]
    for done, name in enumerate(engine.order, start=1):
        _add_tensor(name, base, experts, written, bases, rank, DTYPES[recipe.dtype])
        if progress is not None:
            progress(done, len(engine.order))
    if not bases and not any(expert.tensors for expert in written):
        raise BadRecipe("the experts are the base itself: there is nothing that coefficients could restore")
    _write(recipe, to, bases, written, fingerprint(base.path))
    return [expert.error for expert in written]


def _add_tensor(
    name: str, base: Checkpoint, experts: Sequence[Checkpoint], written: Sequence[_Expert], bases: dict[str, Tensor],
    rank: int | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Take tensor ``name`` of every expert: its coefficients, or the tensor itself where it is no matrix."""
    start = base.tensor(name).double()
    taus = [expert.tensor(name).double() - start for expert in experts]
    if not any(bool(tau.any()) for tau in taus):
        return
    if start.ndim != 2:
        for expert, tau in zip(written, taus, strict=True):
            expert.tensors[name] = (start + tau).to(dtype)
            _count(expert, tau, expert.tensors[name].double() - start)
        return
    basis = shared_basis([tau.T for tau in taus])[:, :rank].T.to(dtype).contiguous()
    bases[name] = basis
    for expert, tau in zip(written, taus, strict=True):
        expert.tensors[name] = (tau @ basis.double().T).to(dtype)
        _count(expert, tau, expert.tensors[name].double() @ basis.double())


def _count(expert: _Expert, tau: Tensor, restored: Tensor) -> None:
    expert.lost += float((tau - restored).square().sum())
    expert.whole += float(tau.square().sum())


def _write(recipe: Recipe, to: Path, bases: dict[str, Tensor], written: Sequence[_Expert], digest: str) -> None:
    assert recipe.base is not None
    with writing_folder(to) as folder:
        save_file(bases, folder / BASIS, metadata={"format": "pt", "base": digest})
        lines = []
        for number, (position, expert) in enumerate(zip(recipe.experts, written, strict=True), start=1):
            own = folder / f"expert-{number}"
            own.mkdir()
            save_file(expert.tensors, own / COEFFICIENTS, metadata={"format": "pt"})
            source = Source(path=str(Path(to).absolute() / own.name), digest=fingerprint(own))
            restoring = Recipe(
                sources=(recipe.sources[recipe.base], source), base=0, dtype=recipe.dtype, body=alone(1, 2)
            )
            (folder / f"{own.name}.json").write_text(restoring.to_json() + "\n", encoding="utf-8")
            lines.append(f"| `{own.name}` | {recipe.sources[position].path} | {expert.error:.3g} |")
        (folder / "README.md").write_text(_card(recipe.sources[recipe.base].path, lines), encoding="utf-8")


def _card(base: str, lines: Sequence[str]) -> str:
    return "\n".join(
        [
            "# Experts in a shared basis",
            "",
            f"One basis (`{BASIS}`) for all matrices of the experts of {base}, and for each expert its coefficients.",
            "The error is the norm of what is not restored over the norm of the step from the base.",
            "",
            "| folder | expert | error |",
            "|---|---|---|",
            *lines,
            "",
            "`evomerge merge expert-1.json --to DIR` restores the first one as a checkpoint. In recipes and search",
            "files a folder stands for its expert as an adapter does.",
            "",
        ]
    )
