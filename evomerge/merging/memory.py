"""How much private memory a merge to disk needs, and whether a limit leaves it that.

Sources and prepared vectors are mapped, results leave in pieces: what is left are buffers, remembered selections,
tensors of adapters and the matrices that spectral operators decompose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from evomerge.errors import BadSearch, NotEnoughRoom
from evomerge.merging.adapter import Adapter
from evomerge.merging.aligned import Aligned
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.kernels import Scratch
from evomerge.merging.path_export import TOKENS
from evomerge.merging.safetensors_writer import BUFFER, BUFFERS, tensor_bytes
from evomerge.merging.selection import CACHE_BYTES
from evomerge.merging.statistics import Statistical
from evomerge.merging.virtual import Spectral
from search_spaces.operators import Della, DellaLinear, Knots, OperatorPlugIn, Ota
from search_spaces.recipe import PathBody, Recipe
from search_spaces.tensors import in_stack

_FIXED = 16 << 20  # histograms, the libraries' own buffers, threads
_PER_SOURCE = 4 << 20  # float64 copies of the pieces that selections and inner products look at
_CACHE = 4 << 20  # the least for remembered selections
_DECOMPOSED, _PER_EXPERT = 12, 4  # float64 squares of a matrix's longer side, measured: 35 MiB each for 1024


def parse_bytes(text: str) -> int:
    """Return the number of bytes that ``text``, for example ``2GiB`` or ``500MB``, means.

    Raises:
        BadSearch: it means none.
    """
    try:
        value = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        value = 0
    if value <= 0:
        raise BadSearch(f"--memory-limit {text!r}: expected a size as 2GiB or 500MB")
    return value


def cache_within(limit: int | None, recipe: Recipe, checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> int:
    """Return the bytes that the merge of ``recipe`` may spend on remembered selections under ``limit``, in bytes.

    Raises:
        NotEnoughRoom: the merge needs more than the limit; the text says how much.
    """
    if limit is None:
        return CACHE_BYTES
    needed = _needed(recipe, checkpoints, names)
    if needed > limit:
        raise NotEnoughRoom(
            f"the merge needs {math.ceil(needed / 2**20)} MiB of memory beside the mapped models, and the limit is "
            f"{limit / 2**20:.0f} MiB; nothing was written"
        )
    return min(CACHE_BYTES, limit - needed + _CACHE)


def _needed(recipe: Recipe, checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> int:
    sources, dtype = len(checkpoints), getattr(torch, recipe.dtype)
    rows = (5 + sources) * Scratch(torch.device("cpu")).chunk * 4
    pieces = BUFFER * (BUFFERS + 8 // dtype.itemsize)  # float32 before a path is folded, and after
    needed: int = _FIXED + sources * _PER_SOURCE + _CACHE + rows + pieces
    plain = [checkpoint.source if isinstance(checkpoint, Aligned) else checkpoint for checkpoint in checkpoints]
    needed += sum(_of_adapter(checkpoint) for checkpoint in plain if isinstance(checkpoint, Adapter))
    shapes = {name: checkpoints[0].info(name).shape for name in names}
    if isinstance(recipe.body, PathBody):  # what is written is loaded and compared with the path
        copies = 2 + len(recipe.body.merged_slots)
        needed += copies * sum(tensor_bytes(shape, dtype) for shape in shapes.values())
        words = max(shape[0] for shape in shapes.values())
        needed += 2 * TOKENS * words * 4 + 8 * words * 8  # logits of a prompt by either, float64 ones of a token
    if any(isinstance(operator, Statistical | Ota) for operator in recipe.operators):  # whole tensors in float64
        largest = max(math.prod(shape) for shape in shapes.values())
        needed += (4 + 5 * len(recipe.experts)) * largest * 8
    if any(isinstance(operator, Spectral | Knots | Statistical) for operator in recipe.operators):
        side = max((max(shape) for name, shape in shapes.items() if len(shape) == 2 and in_stack(name)), default=0)
        needed += (_DECOMPOSED + _PER_EXPERT * len(recipe.experts)) * side * side * 8
    ranked = any(isinstance(operator, Della | DellaLinear) for operator in recipe.operators)
    if ranked or any(operator.needs_adapters for operator in recipe.operators):  # ranks in rows; a sum of low rank
        needed += max(2 * len(recipe.experts), 8) * max(math.prod(shape) for shape in shapes.values())
    if any(isinstance(operator, OperatorPlugIn) for operator in recipe.operators):  # whole tensors in float32
        needed += (sources + 3) * max(tensor_bytes(shape, torch.float32) for shape in shapes.values())
    return needed


def _of_adapter(adapter: Adapter) -> int:
    """Return the bytes of the largest tensor that is made from the adapter: the delta, the base and their sum."""
    largest: int = max(math.prod(adapter.info(name).shape) for name in adapter.changed)
    return 3 * 4 * largest
