"""The tokens of a merged model whose sources have different ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from search_spaces.canonical import Frozen, digest


class TokenRow(Frozen):
    """Where the embedding of one token comes from, in sources that lack the token."""

    source: int | Literal["zero"] = Field(description="position of a source")
    token: str | None = Field(default=None, description="another token of that source")
    token_id: int | None = Field(default=None, ge=0, description="a row of that source's embeddings")
    force: bool = Field(default=False, description="in all sources, those that have the token included")

    @model_validator(mode="after")
    def _one_row(self) -> TokenRow:
        if self.token is not None and self.token_id is not None:
            raise ValueError("give token or token_id, not both")
        if self.source == "zero" and (self.token is not None or self.token_id is not None):
            raise ValueError("a row of zeros is of no token")
        return self


class Vocabulary(Frozen):
    """Which tokens a merged model has, and where sources get the embeddings that they lack.

    In every source the rows of embeddings and head are brought to the order of these tokens before anything is merged.
    A token that a source lacks gets the row of the base, if that has it; else of its only owner; else the mean of its
    owners; zeros if nobody has it.
    """

    source: int | Literal["union"] = Field(description="position of the source whose tokenizer is kept, or all tokens")
    tokens: dict[str, TokenRow] = Field(default={}, description="tokens that get a row of their own choice")
    pad_to_multiple_of: int | None = Field(default=None, ge=1, description="rows, the added ones being the mean row")
    chat_template: str | None = Field(default=None, description="Jinja text; that of the tokenizer by default")
    aside: tuple[int, ...] = Field(default=(), description="sources that give rows only where no other one can")

    def positions(self) -> tuple[int, ...]:
        """Return the positions of sources that it names."""
        named = [self.source, *(row.source for row in self.tokens.values()), *self.aside]
        return tuple(position for position in named if isinstance(position, int))


def vocabulary_keys(vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """Return what ``vocabulary`` adds to the digests of the sources where something made of them is kept."""
    return () if vocabulary is None else (digest(vocabulary.model_dump(mode="json")),)
