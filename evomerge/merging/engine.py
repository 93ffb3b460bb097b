"""Merging in memory: one pass over the mapped sources, written straight into the tensors of a live model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import BadRecipe
from evomerge.merging.adapter import Adapter, Factors
from evomerge.merging.aligned import Aligned
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.coefficients import Kernel
from evomerge.merging.kernels import Scratch
from evomerge.merging.masks import MaskKey, mask_keys
from evomerge.merging.mosaics import Mosaics
from evomerge.merging.operators import ALIKE, for_tensor, whole_run
from evomerge.merging.pieces import Piece, TensorMerge, check_finite
from evomerge.merging.selection import CACHE_BYTES, Selector
from evomerge.merging.step import stepped
from search_spaces.recipe import Block, Blocks, PathBody, Recipe
from search_spaces.tensors import block_for
from search_spaces.tiles import MosaicBody

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REMEMBERED_STRUCTURES = 32
_Structure = tuple[tuple[tuple[int, int], tuple[str, ...], bool], ...]


@dataclass(frozen=True)
class _Run:
    """Tensors that lie side by side in every source and in the destination, merged as one flat tensor."""

    block: int
    names: tuple[str, ...]
    sources: tuple[Tensor, ...]
    out: Tensor


class Destination(Mapping[str, Tensor]):
    """Where merges are written: contiguous tensors by name. Keeping one saves planning each merge anew."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take ``tensors`` as they are; nothing is copied.

        Raises:
            ValueError: a tensor is not contiguous.
        """
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        for name, tensor in self._tensors.items():
            if not tensor.is_contiguous():
                raise ValueError(f"out: tensor {name!r} must be contiguous")
        self._runs: dict[tuple[int, _Structure], list[_Run]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor ``name``."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._tensors)

    def runs(self, key: tuple[int, _Structure], plan: Callable[[], list[_Run]]) -> list[_Run]:
        """Return the runs remembered under ``key``, or plan them."""
        if key not in self._runs:
            if len(self._runs) >= _REMEMBERED_STRUCTURES:
                self._runs.clear()
            self._runs[key] = plan()
        return self._runs[key]


class MergeEngine:
    """Applies recipes to a fixed list of checkpoints, which the sources of every recipe name in this order."""

    def __init__(
        self, checkpoints: Sequence[Checkpoint], *, names: Sequence[str], cache_bytes: int | None = None
    ) -> None:
        """Prepare to merge the tensors ``names`` of ``checkpoints`` (checked by `compatibility.check`).

        ``cache_bytes`` is the most that selections remember, by default what suits a search.
        """
        self._cache_bytes = cache_bytes
        self._checkpoints = tuple(checkpoints)
        wanted = set(names)
        first = self._checkpoints[0]
        self.order = tuple(name for name in first.order if name in wanted)
        self._flat = [_flat(checkpoint, self.order) for checkpoint in self._checkpoints]
        self._scratch: dict[torch.device, Scratch] = {}
        self._selectors: dict[int, Selector] = {}
        self._mosaics = Mosaics({name: math.prod(first.info(name).shape) for name in self.order})

    @property
    def private_bytes_needed(self) -> int:
        """Upper bound of the memory that merging itself needs on the CPU, in bytes: buffers and remembered fields."""
        buffers = (5 + len(self._checkpoints)) * Scratch(torch.device("cpu")).chunk * 4
        return buffers + CACHE_BYTES

    def merge(self, recipe: Recipe, out: Mapping[str, Tensor]) -> None:
        """Write every tensor of ``recipe`` into ``out``: name -> contiguous tensor of its shape, in recipe.dtype.

        Raises:
            BadRecipe: the recipe does not fit the checkpoints or ``out``.
            CandidateFailed: weights that cancel or a result that is not finite; ``out`` is then undefined.
        """
        target = out if isinstance(out, Destination) else Destination(out)
        self._check_recipe(recipe)
        body = _merge_in(recipe)
        if isinstance(body, MosaicBody):
            self._merge_mosaic(recipe, body, target)
        else:
            self._merge_blocks(recipe, body, target)
        healthy = [scratch.healthy() for scratch in self._scratch.values()]  # each forgets what it has seen
        if not all(healthy):
            for name in self.order:
                check_finite(_what(recipe, name), target[name])

    def _merge_blocks(self, recipe: Recipe, body: Blocks, target: Destination) -> None:
        runs = self._planned(recipe, body, target)
        kernels = [whole_run(block.operator, recipe) if _alike(block) else None for block in body.blocks]
        keys = mask_keys(body.mask_seed, recipe.sources)
        for run in runs:
            kernel = kernels[run.block] or self._kernel(recipe, body.blocks[run.block], run.names[0], keys)
            kernel.run(run.sources, run.out, self._scratch_on(run.out.device))

    def _merge_mosaic(self, recipe: Recipe, body: MosaicBody, target: Destination) -> None:
        for name in self.order:
            self._check_target(target, name)
        _check_dtype(recipe, target[self.order[0]])
        for name in self.order:
            pieces = list(self._mosaics.pieces(body, name))
            sources = [flat[name] for flat in self._flat]
            scratch = self._scratch_on(target[name].device)
            TensorMerge(name, sources, pieces, scratch).fill_unchecked(target[name].view(-1))

    def merge_tensor(self, recipe: Recipe, name: str) -> Tensor:
        """Return tensor ``name`` of ``recipe``, with the bytes that `merge` would write.

        Raises:
            BadRecipe, CandidateFailed: see `tensor_merge`.
        """
        merge = self.tensor_merge(recipe, name)
        out = torch.empty(self._checkpoints[0].info(name).shape, dtype=DTYPES[recipe.dtype])
        merge.fill(out.view(-1))
        return out

    def tensor_merge(self, recipe: Recipe, name: str) -> TensorMerge:
        """Return what makes tensor ``name`` of ``recipe`` on the CPU, whole or in pieces.

        Raises:
            BadRecipe: the recipe does not fit the checkpoints, or there is no such tensor.
            CandidateFailed: weights that cancel; or, when it is made, a result that is not finite.
        """
        self._check_recipe(recipe)
        if name not in self._flat[0]:
            raise BadRecipe(f"tensor {name!r} is not one of the {len(self.order)} that are merged")
        body, sources = _merge_in(recipe), [flat[name] for flat in self._flat]
        if isinstance(body, MosaicBody):
            pieces = list(self._mosaics.pieces(body, name))
        else:
            pieces = [Piece(0, sources[0].numel(), self.kernel(recipe, name))]
        return TensorMerge(_what(recipe, name), sources, pieces, self._scratch_on(torch.device("cpu")))

    def kernel(self, recipe: Recipe, name: str) -> Kernel:
        """Return what merges tensor ``name`` of a recipe of blocks.

        Raises:
            BadRecipe: no block covers it.
            CandidateFailed: weights that cancel.
        """
        assert isinstance(recipe.body, Blocks)
        keys = mask_keys(recipe.body.mask_seed, recipe.sources)
        return self._kernel(recipe, recipe.body.blocks[self._block_index(recipe.body, name)], name, keys)

    def _kernel(self, recipe: Recipe, block: Block, name: str, keys: Sequence[MaskKey]) -> Kernel:
        selector = self._selector(recipe)
        kernel = for_tensor(block.operator, recipe, name, selector=selector, keys=keys)
        if not block.has_step:
            return kernel
        return stepped(kernel, block, recipe, name, layers=self._checkpoints[0].layers, selector=selector)

    def _selector(self, recipe: Recipe) -> Selector:
        base = recipe.base if recipe.base is not None else 0
        if base not in self._selectors:
            shapes = {name: self._checkpoints[0].info(name).shape for name in self.order}
            flat = [flat.__getitem__ for flat in self._flat]
            self._selectors[base] = Selector(flat, base, shapes, self._cache_bytes, self._factors)
        return self._selectors[base]

    def _factors(self, source: int, name: str) -> Factors | None:
        checkpoint = self._checkpoints[source]
        checkpoint = checkpoint.source if isinstance(checkpoint, Aligned) else checkpoint
        if not isinstance(checkpoint, Adapter):
            raise BadRecipe(f"{checkpoint.path} is no LoRA adapter, and operators on factors merge nothing else")
        return checkpoint.factors(name)

    def _scratch_on(self, device: torch.device) -> Scratch:
        if device not in self._scratch:
            self._scratch[device] = Scratch(device)
        return self._scratch[device]

    def _check_recipe(self, recipe: Recipe) -> None:
        if len(recipe.sources) != len(self._checkpoints):
            raise BadRecipe(
                f"the recipe names {len(recipe.sources)} sources, but {len(self._checkpoints)} checkpoints are open"
            )

    def _block_index(self, body: Blocks, name: str) -> int:
        try:
            block = block_for(name, body, self._checkpoints[0].layers)
        except ValueError as error:
            raise BadRecipe(str(error)) from None
        return next(i for i, other in enumerate(body.blocks) if other is block)

    def _planned(self, recipe: Recipe, body: Blocks, target: Destination) -> list[_Run]:
        structure = tuple((block.layers, block.tensors, _alike(block)) for block in body.blocks)
        runs = target.runs((id(self), structure), lambda: self._plan(body, target))
        _check_dtype(recipe, runs[0].out)
        return runs

    def _plan(self, body: Blocks, target: Destination) -> list[_Run]:
        """Group neighbouring tensors of one block into runs, where its operator treats all tensors alike."""
        groups: list[tuple[int, list[str]]] = []
        for name in self.order:
            self._check_target(target, name)
            block = self._block_index(body, name)
            fits = _alike(body.blocks[block])
            if fits and groups and groups[-1][0] == block and self._adjacent(groups[-1][1][-1], name, target):
                groups[-1][1].append(name)
            else:
                groups.append((block, [name]))
        return [
            _Run(
                block,
                tuple(names),
                tuple(_span([flat[name] for name in names]) for flat in self._flat),
                _span([target[name].view(-1) for name in names]),
            )
            for block, names in groups
        ]

    def _adjacent(self, before: str, name: str, target: Destination) -> bool:
        pairs = [(flat[before], flat[name]) for flat in self._flat]
        return all(_touch(one, two) for one, two in [*pairs, (target[before], target[name])])

    def _check_target(self, target: Destination, name: str) -> None:
        shape = self._checkpoints[0].info(name).shape
        if name not in target or tuple(target[name].shape) != shape:
            found = list(target[name].shape) if name in target else "no such tensor"
            raise BadRecipe(f"out: tensor {name!r} should have shape {list(shape)}, got {found}")


def _merge_in(recipe: Recipe) -> Blocks | MosaicBody:
    if isinstance(recipe.body, PathBody):
        raise BadRecipe("a path is not one merge: its slots are merged, each by itself")
    return recipe.body


class _Streamed(Mapping[str, Tensor]):
    """Flat tensors that are made when they are asked for, and not kept."""

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).view(-1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _flat(checkpoint: Checkpoint, names: Sequence[str]) -> Mapping[str, Tensor]:
    streamed = _Streamed(checkpoint, names)
    return dict(streamed) if checkpoint.mapped else streamed


def _alike(block: Block) -> bool:
    """Whether all tensors of the block are merged alike, so that neighbours can be merged as one."""
    return isinstance(block.operator, ALIKE) and not block.has_step


def _touch(one: Tensor, two: Tensor) -> bool:
    same = one.dtype == two.dtype and one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()
    return same and one.storage_offset() + one.numel() == two.storage_offset()


def _span(tensors: Sequence[Tensor]) -> Tensor:
    """Return one flat view over ``tensors``, which lie side by side in one storage."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.as_strided(tensors[0], (sum(tensor.numel() for tensor in tensors),), (1,))


def _check_dtype(recipe: Recipe, out: Tensor) -> None:
    if out.dtype is not DTYPES[recipe.dtype]:
        raise BadRecipe(f"the recipe is {recipe.dtype}, but the tensors to write are {out.dtype}")


def _what(recipe: Recipe, name: str) -> str:
    return f"recipe {recipe.digest[:12]}: tensor {name!r}"
