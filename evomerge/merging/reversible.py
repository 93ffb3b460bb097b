"""Reversible merging as an export: one basis for all experts, and for each the coefficients that restore it.

After RMM (reversible model merging): the rows of all task vectors of a matrix, stacked, have ``T ~ C B`` with the
``rank`` largest right singular vectors as B, (rank, columns). An expert is then ``theta_0 + C_i B``, which is low-rank:
it opens as an adapter does, and merges as any expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evomerge.atomic import check_free, writing_folder
from evomerge.errors import BadRecipe
from evomerge.merging.adapter import Adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import DTYPES
from evomerge.merging.export import open_merge
from evomerge.merging.growing import Growing, growing
from evomerge.merging.sources import BASIS, COEFFICIENTS, fingerprint
from evomerge.merging.spectral import shared_basis
from search_spaces.recipe import Recipe, Source, alone

Progress = Callable[[int, int], None]


@dataclass
class _Expert:
    """The file of one expert, and how far it is from what it was: squared norms."""

    file: Growing
    lost: float = 0.0
    whole: float = 0.0

    @property
    def error(self) -> float:
        """The norm of what cannot be restored over that of the task vector."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0

    def add(self, name: str, tensor: Tensor, tau: Tensor, restored: Tensor) -> None:
        """Write ``tensor``, which restores ``tau`` as ``restored``."""
        self.file.add(name, tensor)
        self.lost += float((tau - restored).square().sum())
        self.whole += float(tau.square().sum())


def write_reversible(recipe: Recipe, to: Path, *, rank: int | None, progress: Progress | None = None) -> list[float]:
    """Write the experts of ``recipe`` to folder ``to`` as a basis, their coefficients and recipes that restore them.

    Matrices are cut to ``rank`` directions, by default all that adapters have; other tensors are kept as they are.
    Everything has the recipe's dtype. What its body does with the experts does not matter. One tensor of each expert is
    held at a time.

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
    names = engine.order
    with writing_folder(to) as folder:
        with ExitStack() as files:
            bases = files.enter_context(growing(folder / BASIS, names, base=fingerprint(base.path)))
            written = []
            for number in range(1, len(experts) + 1):
                (folder / _name(number)).mkdir()
                written.append(_Expert(files.enter_context(growing(folder / _name(number) / COEFFICIENTS, names))))
            for done, name in enumerate(names, start=1):
                _add_tensor(name, base, experts, written, bases, rank, DTYPES[recipe.dtype])
                if progress is not None:
                    progress(done, len(names))
        if all(expert.file.empty for expert in written):
            raise BadRecipe("the experts are the base itself: there is nothing that coefficients could restore")
        _write_recipes(recipe, Path(to).absolute(), folder, [expert.error for expert in written])
    return [expert.error for expert in written]


def _add_tensor(
    name: str, base: Checkpoint, experts: Sequence[Checkpoint], written: Sequence[_Expert], bases: Growing,
    rank: int | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Take tensor ``name`` of every expert: its coefficients, or the tensor itself where it is no matrix."""
    start = base.tensor(name).double()
    taus = [expert.tensor(name).double() - start for expert in experts]
    if not any(bool(tau.any()) for tau in taus):
        return
    if start.ndim != 2:
        for expert, tau in zip(written, taus, strict=True):
            tensor = (start + tau).to(dtype)
            expert.add(name, tensor, tau, tensor.double() - start)
        return
    basis = shared_basis([tau.T for tau in taus])[:, :rank].T.to(dtype).contiguous()
    bases.add(name, basis)
    for expert, tau in zip(written, taus, strict=True):
        tensor = (tau @ basis.double().T).to(dtype)
        expert.add(name, tensor, tau, tensor.double() @ basis.double())


def _name(number: int) -> str:
    return f"expert-{number}"


def _write_recipes(recipe: Recipe, to: Path, folder: Path, errors: Sequence[float]) -> None:
    """Write into ``folder``, which will be ``to``, a recipe that restores each expert, and the card."""
    assert recipe.base is not None
    lines = []
    for number, (position, error) in enumerate(zip(recipe.experts, errors, strict=True), start=1):
        source = Source(path=str(to / _name(number)), digest=fingerprint(folder / _name(number)))
        restoring = Recipe(sources=(recipe.sources[recipe.base], source), base=0, dtype=recipe.dtype, body=alone(1, 2))
        (folder / f"{_name(number)}.json").write_text(restoring.to_json() + "\n", encoding="utf-8")
        lines.append(f"| `{_name(number)}` | {recipe.sources[position].path} | {error:.3g} |")
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
