"""What somebody may have meant who wrote a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(name: str, known: Iterable[str]) -> str:
    """Return what follows in a message that says that ``name`` is not known: ``: did you mean 'b'? (known: a, b)``."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"{f': did you mean {near[0]!r}?' if near else ''} (known: {', '.join(names)})"
