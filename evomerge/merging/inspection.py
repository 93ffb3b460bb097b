"""One pass over the sources before a search: squares of weights and of differences, block by block."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evomerge.atomic import replacing
from evomerge.errors import BadSource
from evomerge.inspection import PARTS, SUMS, Inspection, place_of
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names, ties_embeddings
from evomerge.merging.sources import cache_folder
from evomerge.shares import Progress

_CHUNK = 1 << 18  # elements in float32 at a time, of each of two tensors
_FORMAT = 1  # of what is remembered


def inspect(checkpoints: Sequence[Checkpoint], names: Sequence[str], *, progress: Progress | None = None) -> Inspection:
    """Compare every expert with the base, ``checkpoints[0]``, in one pass.

    Args:
        names: short names of the experts.
        progress: called with the elements done and in all, of all experts together.

    Raises:
        BadSource: a source holds NaN or infinite values; the tensor is named.
    """
    base, *experts = checkpoints
    tensors = mergeable_names(base)
    sums = np.zeros((len(experts), len(PARTS), base.layers + 2, len(SUMS)))
    unchanged = [0] * len(experts)
    counts = [math.prod(base.info(name).shape) for name in tensors]
    done = 0
    for name, count in zip(tensors, counts, strict=True):
        part, column = place_of(name, base.layers)
        own = base.tensor(name).view(-1)
        for number, expert in enumerate(experts):
            found = _sums(own, expert.tensor(name).view(-1))
            _check_finite(found, (base, expert), name)
            sums[number, part, column] += found
            unchanged[number] += not found[SUMS.index("step")]
        done += count
        if progress is not None:
            progress(done, sum(counts))
    return Inspection(tuple(names), ties_embeddings(base), len(tensors), tuple(unchanged), sums)


def cached_inspection(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    *,
    digests: Sequence[str],
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Inspection:
    """Return `inspect`, read from the cache if sources of the same contents were inspected before.

    Args:
        digests: of the sources' contents.
        cache: folder; this user's by default.
    """
    key = hashlib.sha256("\n".join([*digests, str(_FORMAT)]).encode()).hexdigest()
    file = (cache or cache_folder()) / "inspections" / f"{key}.json"
    try:
        return Inspection.restore(json.loads(file.read_text(encoding="utf-8"))).named(names)
    except (OSError, ValueError, KeyError, TypeError):
        found = inspect(checkpoints, names, progress=progress)  # not there, or not whole
    try:
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(found.record()), encoding="utf-8")
    except OSError:
        pass  # a read-only cache costs time, not correctness
    return found


def _sums(base: Tensor, expert: Tensor) -> np.ndarray:
    """Return the sums of squares in the order of `SUMS`: float64 (3,)."""
    total = np.zeros(len(SUMS))
    for one, two in zip(torch.split(base, _CHUNK), torch.split(expert, _CHUNK), strict=True):
        first, second = one.float(), two.float()
        step = second - first
        total += [float(part.dot(part)) for part in (first, second, step)]
    return total


def _check_finite(sums: np.ndarray, pair: Sequence[Checkpoint], name: str) -> None:
    if np.isfinite(sums).all():
        return
    for checkpoint in pair:
        tensor = checkpoint.tensor(name)
        if bad := tensor.numel() - int(torch.isfinite(tensor).sum()):
            raise BadSource(
                f"{checkpoint.path}: {bad} of {tensor.numel()} values of tensor {name!r} are NaN or infinite, and so "
                "would be every merge; train or download the model again"
            )
    raise BadSource(f"{pair[1].path}: the squares of tensor {name!r} are beyond float32; no language model is so large")
