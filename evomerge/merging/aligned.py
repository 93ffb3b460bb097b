"""Sources whose embeddings and head are brought to one vocabulary, so that everything merges them as any others."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.alignment import MEAN, Alignment
from evomerge.merging.checkpoint import Checkpoint, TensorInfo
from evomerge.merging.prepared import prepared_in_pieces
from search_spaces.tensors import in_stack

_BY_TOKEN = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|lm_head|embed_out|output)\.\w+$"
)
_ROWS = 1 << 12  # that a mean is taken over at a time


def by_token(name: str) -> bool:
    """Whether tensor ``name`` has a row for every token."""
    return not in_stack(name) and bool(_BY_TOKEN.search(name))


class Aligned(Checkpoint):
    """A source in the vocabulary of the merged model.

    Attributes:
        home: the folder that holds the merged model's config and tokenizer.
    """

    def __init__(self, number: int, sources: Sequence[Checkpoint], alignment: Alignment, home: Path, key: str) -> None:
        """Stand for ``sources[number]``; ``key`` names the contents of all sources and the alignment."""
        own = sources[number]
        self.path, self.home, self.config = own.path, home, with_rows(own.config, alignment.size)
        self.layers, self.order, self.names = own.layers, own.order, own.names
        self._number, self._sources, self._alignment, self._key = number, sources, alignment, key
        sizes = [max((s.info(name).shape[0] for name in s.names if by_token(name)), default=0) for s in sources]
        self._changes = alignment.changes(sizes)
        self.bytes = sum(self.info(name).bytes for name in self.names)

    @property
    def mapped(self) -> bool:
        """Whether tensors lie in files."""
        return self._sources[self._number].mapped

    def _moves(self, name: str) -> bool:
        return self._changes and by_token(name)

    @property
    def source(self) -> Checkpoint:
        """The source as it is."""
        return self._sources[self._number]

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size of tensor ``name``; rows of different dtypes, and means, are float32."""
        known = self.source.info(name)
        if not self._moves(name):
            return known
        dtypes = {source.info(name).dtype for source in self._sources}
        dtype = torch.float32 if self._alignment.averages or len(dtypes) > 1 else known.dtype
        shape = (self._alignment.size, *known.shape[1:])
        return TensorInfo(dtype, shape, math.prod(shape) * dtype.itemsize)

    def tensor(self, name: str) -> Tensor:
        """Return tensor ``name``: the source's own view, or its rows in the new order, mapped from the cache folder."""
        if not self._moves(name):
            return self.source.tensor(name)
        info = self.info(name)
        whole = prepared_in_pieces(
            "vocabularies", f"{self._key}-{self._number}", name, info.shape, info.dtype, _Rows(self, name).fill
        )
        return whole.view(info.shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of tensor ``name``, padding left out, float32."""
        plan = self._alignment
        places = slice(start, stop)
        own, stand_in, row = plan.own[self._number, places], plan.stand_in[places], plan.row[places]
        out = torch.zeros((stop - start, *self.info(name).shape[1:]))
        _copy(out, own >= 0, self.source.tensor(name), own)
        for giver in np.unique(stand_in[(own < 0) & (stand_in >= 0)]):
            _copy(out, (own < 0) & (stand_in == giver), self._sources[giver].tensor(name), row)
        mean = (own < 0) & (stand_in == MEAN)
        if mean.any():
            owners = plan.owners[:, places] & mean
            for position, source in enumerate(self._sources):
                _copy(out, owners[position], source.tensor(name), plan.own[position, places], add=True)
            count = torch.from_numpy(owners.sum(0)[mean]).view(-1, *[1] * (out.dim() - 1))
            out[torch.from_numpy(mean)] /= count
        return out

    def mean_row(self, name: str) -> Tensor:
        """Return the mean over the rows of all tokens, float32."""
        tokens = self._alignment.tokens
        total = torch.zeros(self.info(name).shape[1:], dtype=torch.float64)
        for start in range(0, tokens, _ROWS):
            total += self.rows(name, start, min(start + _ROWS, tokens)).double().sum(0)
        return (total / tokens).float()

    @property
    def tokens(self) -> int:
        """Rows before the padding."""
        return self._alignment.tokens


class _Rows:
    """Makes an aligned tensor piece by piece."""

    def __init__(self, source: Aligned, name: str) -> None:
        self._source, self._name = source, name
        self._width = math.prod(source.info(name).shape[1:])
        self._padding: Tensor | None = None

    def fill(self, out: Tensor, first: int) -> None:
        """See `pieces.Fill`."""
        start, stop = first // self._width, -(-(first + len(out)) // self._width)
        tokens = self._source.tokens
        found = self._source.rows(self._name, start, max(start, min(stop, tokens)))
        if stop > tokens:
            if self._padding is None:
                self._padding = self._source.mean_row(self._name)
            missing = stop - max(start, tokens)
            found = torch.cat([found, self._padding.expand(missing, *self._padding.shape)])
        offset = first - start * self._width
        out.copy_(found.reshape(-1)[offset : offset + len(out)])


def tokenizer_folder(checkpoint: Checkpoint) -> Path:
    """Return the folder whose tokenizer belongs to ``checkpoint``."""
    return checkpoint.home if isinstance(checkpoint, Aligned) else checkpoint.path


def with_rows(config: dict[str, object], rows: int) -> dict[str, object]:
    """Return the content of a config.json for a vocabulary of ``rows``."""
    changed = dict(config)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        changed["text_config"] = with_rows(nested, rows)
    if not isinstance(nested, dict) or "vocab_size" in config:
        changed["vocab_size"] = rows
    return changed


def _copy(out: Tensor, where: np.ndarray, source: Tensor, rows: np.ndarray, *, add: bool = False) -> None:
    """Write, or add, those ``rows`` of ``source`` for which ``where`` says so."""
    if not where.any():
        return
    found = source[torch.from_numpy(rows[where])].float()
    place = torch.from_numpy(where)
    out[place] = out[place] + found if add else found
