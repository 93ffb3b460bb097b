"""Opening the sources of recipes: models, adapters of their base, and all of them in one vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import BadRecipe
from evomerge.merging.adapter import Adapter, is_adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.vocabulary import in_one_vocabulary
from search_spaces.vocabulary import Vocabulary


def open_sources(
    folders: Sequence[Path], base: int | None, *, vocabulary: Vocabulary | None = None, keep: bool = False
) -> list[Checkpoint]:
    """Open the sources of recipes: models, and adapters of the one at position ``base``.

    Args:
        vocabulary: the one that all are brought to; none if theirs are equal.
        keep: make what adapters change once, in the cache folder, and map it; otherwise tensor by tensor when needed.

    Raises:
        BadSource: a folder cannot be used.
        BadRecipe: an adapter is the base, or there is none.
    """
    adapters = [is_adapter(folder) for folder in folders]
    if any(adapters) and (base is None or adapters[base]):
        which = folders[adapters.index(True) if base is None else base]
        raise BadRecipe(f"{which} is an adapter: it needs its base model beside it, named as the base of the merge")
    models = {i: Checkpoint.open(folder) for i, folder in enumerate(folders) if not adapters[i]}
    found: list[Checkpoint] = []
    for position, folder in enumerate(folders):
        if position in models:
            found.append(models[position])
        else:
            assert base is not None
            adapter = Adapter.on(models[base], folder)
            found.append(adapter.keep() if keep else adapter)
    return found if vocabulary is None else in_one_vocabulary(found, vocabulary, base)
