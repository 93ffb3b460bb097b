"""mergekit's tokenizer settings: whose tokens, rows of single tokens, padding, chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.errors import BadRecipe
from evomerge.merging.mergekit_settings import known
from evomerge.merging.sources import resolve
from search_spaces.recipe import Recipe, Source
from search_spaces.vocabulary import TokenRow, Vocabulary

ReadModel = Callable[[Any], Source]
_SECTION = ("source", "tokens", "pad_to_multiple_of")


@dataclass(frozen=True)
class Tokenizer:
    """What a config says of the tokenizer.

    Attributes:
        source: a model, or all; none where the base's is copied.
        tokens: settings of single tokens as they are written, models read.
        chat_template: as it is written.
    """

    source: Source | Literal["union"] | None = None
    tokens: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None

    @property
    def model(self) -> Source | None:
        """The model whose tokenizer is kept, if one is named."""
        return self.source if isinstance(self.source, Source) else None

    @property
    def asked(self) -> bool:
        """Whether anything is said."""
        return self.source is not None or self.chat_template is not None

    def vocabulary(self, models: Sequence[Source], merged: Sequence[Source], base: Source | None) -> Vocabulary:
        """Return the policy for a recipe of ``models``; those not in ``merged`` only give tokens."""
        source = self.source if self.source is not None else (base or models[0])
        return Vocabulary(
            source="union" if source == "union" else models.index(source),
            tokens={token: _row(token, entry, models) for token, entry in self.tokens.items()},
            pad_to_multiple_of=self.pad_to_multiple_of,
            chat_template=_template(self.chat_template, merged),
            aside=tuple(position for position, model in enumerate(models) if model not in merged),
        )


def read_tokenizer(value: Mapping[str, Any], base: Source | None, read_model: ReadModel) -> Tokenizer:
    """Return what the config ``value`` says of the tokenizer.

    Raises:
        BadRecipe: something that mergekit does not know either, or 'base' without one.
    """
    section = value.get("tokenizer")
    if section is not None and value.get("tokenizer_source") is not None:
        raise BadRecipe("mergekit config: give tokenizer_source or tokenizer, not both")
    section = section if section is not None else {"source": value.get("tokenizer_source")}
    known(section, _SECTION, "tokenizer")
    wanted = section.get("source", "union")
    if wanted == "base" and base is None:
        raise BadRecipe("mergekit config: the tokenizer of 'base' is asked for, but there is no base_model")
    source = base if wanted == "base" else wanted if wanted in ("union", None) else read_model(wanted)
    step = section.get("pad_to_multiple_of")
    if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 1):
        raise BadRecipe(f"mergekit config: pad_to_multiple_of should be a whole number above 0, got {step!r}")
    tokens = section.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise BadRecipe(f"mergekit config: tokens should be a mapping, got {tokens!r}")
    template = value.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise BadRecipe(f"mergekit config: chat_template should be text, got {template!r}")
    read = {str(token): _token(str(token), entry or {}, read_model) for token, entry in tokens.items()}
    return Tokenizer(source, read, step, template or None)


def _token(token: str, entry: Any, read_model: ReadModel) -> dict[str, Any]:
    known(entry, ("source", "force"), f"token {token!r}")
    source = entry.get("source")
    if isinstance(source, Mapping) and "kind" in source:
        known(source, ("kind", "model", "token", "token_id"), f"the source of token {token!r}")
        if source["kind"] == "zero":
            return {"source": "zero", "force": bool(entry.get("force"))}
        if source["kind"] != "model_token" or ("token" in source) == ("token_id" in source):
            raise BadRecipe(
                f"mergekit config: the source of token {token!r} should be {{kind: zero}}, a model, or "
                f"{{kind: model_token, model, and token or token_id}}, got {dict(source)}"
            )
        row = {key: source[key] for key in ("token", "token_id") if key in source}
        return {"source": read_model(source.get("model")), "force": bool(entry.get("force")), **row}
    if source is None:
        raise BadRecipe(f"mergekit config: token {token!r} has no source")
    return {"source": read_model(source), "force": bool(entry.get("force"))}


def _row(token: str, entry: Mapping[str, Any], models: Sequence[Source]) -> TokenRow:
    source = entry["source"]
    if source != "zero" and source not in models:
        raise BadRecipe(f"mergekit config: token {token!r} is to come from {source.path!r}, which is not merged")
    return TokenRow.model_validate({**entry, "source": source if source == "zero" else models.index(source)})


def _template(wanted: str | None, models: Sequence[Source]) -> str | None:
    """Return the text of a chat template: itself, or for 'auto' what most of the models have, the first of equals."""
    if wanted is None or "{" in wanted:
        return wanted
    if wanted != "auto":
        raise BadRecipe(
            f"mergekit config: chat_template {wanted!r} names a file inside mergekit; give the template's text, or auto"
        )
    from transformers import AutoTokenizer

    found: Counter[str] = Counter()
    for model in models:
        try:
            folder = resolve(model.path, model.revision)
            text = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).chat_template
        except (OSError, ValueError, KeyError):
            continue  # it has no tokenizer
        text = text.get("default") if isinstance(text, dict) else text
        found.update([text.strip()] if text else [])
    return found.most_common(1)[0][0] if found else None


def written(recipe: Recipe, reference: Callable[[Source], Any]) -> dict[str, Any]:
    """Return the entries of a config that say the recipe's vocabulary; ``reference`` writes a model.

    Raises:
        BadRecipe: mergekit cannot say it.
    """
    policy = recipe.vocabulary
    if policy is None:
        return {}
    source = "union" if policy.source == "union" else reference(recipe.sources[policy.source])
    value: dict[str, Any] = {"source": source}
    if policy.tokens:
        value["tokens"] = {token: _written_row(recipe, row, reference) for token, row in policy.tokens.items()}
    if policy.pad_to_multiple_of is not None:
        value["pad_to_multiple_of"] = policy.pad_to_multiple_of
    template = {"chat_template": policy.chat_template} if policy.chat_template is not None else {}
    return {"tokenizer": value, **template}


def _written_row(recipe: Recipe, row: TokenRow, reference: Callable[[Source], Any]) -> dict[str, Any]:
    force = {"force": True} if row.force else {}
    if row.source == "zero":
        return {"source": {"kind": "zero"}, **force}
    model = reference(recipe.sources[row.source])
    other = {key: value for key in ("token", "token_id") if (value := getattr(row, key)) is not None}
    return {"source": {"kind": "model_token", "model": model, **other} if other else model, **force}
