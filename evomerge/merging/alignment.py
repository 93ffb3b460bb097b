"""Which row of whose embeddings each token of a merged model is, where the vocabularies of the sources differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import BadRecipe
from search_spaces.vocabulary import TokenRow, Vocabulary

ZERO, MEAN = -1, -2  # what stands in for a row that a source lacks, beside the position of a source
_NONE = -1


@dataclass(frozen=True)
class Alignment:
    """The rows of every source in the order of the merged model's tokens.

    Attributes:
        own: row of the token in each source, -1 where it has none or is not to use it: int64 (sources, rows).
        owners: sources that have the token and are asked for a mean: bool (sources, rows).
        stand_in: position of the source whose row stands in, `ZERO` or `MEAN`: int64 (rows,).
        row: of the source that stands in: int64 (rows,).
        tokens: number of tokens; rows after them are padding and hold the mean of those before.
    """

    own: np.ndarray
    owners: np.ndarray
    stand_in: np.ndarray
    row: np.ndarray
    tokens: int

    @property
    def size(self) -> int:
        """Rows of the merged model's embeddings."""
        return int(self.stand_in.size)

    @property
    def averages(self) -> bool:
        """Whether some row is a mean, which the sources' dtype may not hold exactly."""
        return self.tokens < self.size or bool(((self.stand_in == MEAN) & (self.own < 0).any(0)).any())

    def changes(self, sizes: Sequence[int]) -> bool:
        """Whether any source, of so many rows each, is not as it should be already."""
        same = np.arange(self.size)
        return any(size < self.size or not np.array_equal(own, same) for own, size in zip(self.own, sizes, strict=True))


@dataclass(frozen=True)
class Words:
    """The vocabulary of one source: token -> row, and the number of rows that its embeddings have."""

    name: str
    ids: Mapping[str, int]
    rows: int

    def row(self, token: str) -> int:
        """Return the row of ``token``; -1 where there is none."""
        found = self.ids.get(token, _NONE)
        return found if found < self.rows else _NONE


def align(policy: Vocabulary, merged: Mapping[str, int], sources: Sequence[Words], base: int | None) -> Alignment:
    """Return the alignment of ``sources`` to the vocabulary ``merged``, token -> id.

    Raises:
        BadRecipe: the policy asks for a row that is not there.
    """
    tokens = max(merged.values()) + 1
    step = policy.pad_to_multiple_of or 1
    size = -(-tokens // step) * step
    own = np.full((len(sources), size), _NONE, np.int64)
    for position, words in enumerate(sources):
        ids = np.fromiter(merged.values(), np.int64, len(merged))
        own[position, ids] = [words.row(token) for token in merged]
    owners = own >= 0
    beside = list(policy.aside)
    full = owners.copy()
    owners[beside] &= ~np.delete(full, beside, axis=0).any(0)  # asked only where no other source has the token
    stand_in = np.where(owners.sum(0) == 1, owners.argmax(0), MEAN)
    stand_in = np.where(owners.any(0), stand_in, ZERO)
    if base is not None:
        stand_in = np.where(owners[base], base, stand_in)
    row = np.take_along_axis(own, np.maximum(stand_in, 0)[None], axis=0)[0]
    found = Alignment(own, owners, stand_in, row, tokens)
    for token, wanted in policy.tokens.items():
        _choose(found, merged[token], token, wanted, sources)
    return found


def _choose(alignment: Alignment, place: int, token: str, wanted: TokenRow, sources: Sequence[Words]) -> None:
    if wanted.source == "zero":
        source, row = ZERO, 0
    else:
        source, words = wanted.source, sources[wanted.source]
        row = wanted.token_id if wanted.token_id is not None else words.row(wanted.token or token)
        if not 0 <= row < words.rows:
            what = f"row {row}" if wanted.token_id is not None else f"token {wanted.token or token!r}"
            raise BadRecipe(f"vocabulary: token {token!r} is to come from {words.name}, which has no {what}")
    alignment.stand_in[place], alignment.row[place] = source, row
    if wanted.force:
        alignment.own[:, place] = _NONE


def sentences(alignment: Alignment, sources: Sequence[Words]) -> Iterator[str]:
    """Yield what the alignment does, for people: one sentence a source that changes."""
    for position, words in enumerate(sources):
        lacking = alignment.own[position, : alignment.tokens] < 0
        stand_in = alignment.stand_in[: alignment.tokens][lacking]
        dropped = words.rows - len(np.unique(alignment.own[position][alignment.own[position] >= 0]))
        parts = [
            f"{int((stand_in == giver).sum())} rows of {other.name}"
            for giver, other in enumerate(sources)
            if (stand_in == giver).any()
        ]
        if (stand_in == MEAN).any():
            parts.append(f"{int((stand_in == MEAN).sum())} mean rows")
        if (stand_in == ZERO).any():
            parts.append(f"{int((stand_in == ZERO).sum())} rows of zeros")
        if parts or dropped:
            gets = f"gets {', '.join(parts)}" if parts else "lacks nothing"
            leaves = f", leaves out {dropped} of its {words.rows}" if dropped else ""
            yield f"{words.name} {gets}{leaves}"
