"""evomerge finds the best way to merge a set of fine-tuned language models.

    import evomerge

    file = evomerge.load_file("search.yaml")
    results = evomerge.run(file)           # or evomerge.load("ja-math", storage="sqlite:///evomerge.db")
    results.winner, results.front, results.table()

Importing this package loads neither torch, ray, lm_eval nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.config import SearchFile
    from evomerge.results import Results
    from evomerge.watcher import Watcher

__version__ = "0.1.0"
DEFAULT_STORAGE = "sqlite:///evomerge.db"


def load_file(path: str | Path) -> SearchFile:
    """Read and validate a search file.

    Raises:
        BadSearch: it cannot be read or breaks the schema.
    """
    from evomerge.config import load as load_search_file

    return load_search_file(Path(path))


def run(file: SearchFile, *, watcher: Watcher | None = None) -> Results:
    """Run or continue a search here; see `evomerge.runner.run`."""
    from evomerge.runner import run as run_search

    return run_search(file, watcher=watcher)


def load(search: str, *, storage: str = DEFAULT_STORAGE) -> Results:
    """Return the results of a recorded search, finished or not.

    Raises:
        BadSearch: the storage or the search is not there.
    """
    from evomerge.results import Results
    from evomerge.store import Store

    return Results.of(Store(storage).search(search))
