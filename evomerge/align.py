"""`evomerge align`: a model in the order of another one, as a checkpoint that recipes take like any other."""

from __future__ import annotations

from evomerge.shares import Progress
from evomerge.targets import Place, local


def align(model: str, like: str, to: Place, *, progress: Progress | None = None) -> list[str]:
    """Write ``model`` to ``to`` with its hidden units and heads in the order in which it is nearest to ``like``.

    Both are folders, Hub ids or URLs. See `evomerge.merging.matching`.

    Returns:
        What the user should know of what was written.

    Raises:
        UserMistake: a model cannot be used, the two differ in shape, or ``to`` exists.
    """
    from evomerge.merging.checkpoint import Checkpoint
    from evomerge.merging.matching import match, write_aligned
    from evomerge.merging.sources import resolve

    own, reference = (Checkpoint.open(resolve(path, None)) for path in (model, like))
    matching = match(own, reference, progress=progress)
    with local(to) as folder:
        write_aligned(own, matching, folder)
    moved, there = matching.moved, matching.places
    return [f"{moved} of {there} units and heads moved" if moved else "units and heads are in the same order already"]
