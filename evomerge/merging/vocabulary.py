"""Sources with different vocabularies in one: whose tokens, which rows, and the tokenizer that belongs to them.

Tokenizers are read, extended and saved by transformers. What comes of it lies in the cache folder beside the rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.atomic import alone
from evomerge.errors import BadSource, NotEnoughRoom
from evomerge.merging.aligned import Aligned, by_token, with_rows
from evomerge.merging.alignment import Alignment, Words, align, sentences
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.companions import TOKENIZER_FILES, companions, copy_companions
from evomerge.merging.sources import CACHE_VARIABLE, cache_folder, fingerprint
from search_spaces.canonical import digest
from search_spaces.vocabulary import Vocabulary

_FORMAT = 1  # of what is prepared: a change makes what lies in caches obsolete


@dataclass(frozen=True)
class Plan:
    """One vocabulary for some sources.

    Attributes:
        tokenizer: of transformers, for the merged model.
        extended: whether it has more tokens than the source that it was made from.
        donor: position of that source, whose config the merged model has.
    """

    policy: Vocabulary
    words: tuple[Words, ...]
    alignment: Alignment
    tokenizer: Any
    extended: bool
    donor: int

    @property
    def changes(self) -> bool:
        """Whether any source's rows are not those of the merged model already."""
        return self.alignment.changes([words.rows for words in self.words])

    def needed(self, base: int | None) -> bool:
        """Whether the merged model is not simply one with the rows and the tokenizer of the base."""
        return self.changes or self.policy.chat_template is not None or self.donor != (base or 0)

    def sentences(self) -> list[str]:
        """Return what becomes of the sources, for people."""
        if not self.changes:
            return ["the vocabularies are equal: nothing to align"]
        merged = f"{self.alignment.tokens} tokens"
        if padding := self.alignment.size - self.alignment.tokens:
            merged += f" and {padding} rows of padding"
        whose = "of all sources together" if self.policy.source == "union" else f"of {self.words[self.donor].name}"
        return [f"the merged model has the {merged} {whose}", *sentences(self.alignment, self.words)]


def plan_vocabulary(sources: Sequence[Checkpoint], policy: Vocabulary, base: int | None) -> Plan:
    """Return how ``policy`` brings ``sources`` to one vocabulary; the tokenizers are read.

    Raises:
        BadSource: a source has no tokenizer that transformers can read.
        BadRecipe: the policy asks for a row that is not there.
    """
    tokenizers = [_tokenizer(source) for source in sources]
    words = tuple(
        Words(source.path.name, tokenizer.get_vocab(), _rows(source))
        for source, tokenizer in zip(sources, tokenizers, strict=True)
    )
    first = base if base is not None else 0
    donor = policy.source if isinstance(policy.source, int) else first
    merged = _tokenizer(sources[donor])  # a second one: the first is compared with it
    before = len(merged)
    if policy.source == "union":
        rest = [position for position in range(len(sources)) if position != first]
        _unite(merged, [(tokenizers[position], words[position].rows) for position in (first, *rest)])
    known = merged.get_vocab()
    merged.add_tokens([token for token in policy.tokens if token not in known])
    alignment = align(policy, merged.get_vocab(), words, base)
    return Plan(policy, words, alignment, merged, len(merged) > before, donor)


def in_one_vocabulary(sources: Sequence[Checkpoint], policy: Vocabulary, base: int | None) -> list[Checkpoint]:
    """Return ``sources`` as ``policy`` aligns them; unchanged where there is nothing to do.

    Raises:
        BadSource, BadRecipe: see `plan_vocabulary`.
        NotEnoughRoom: the cache folder has no room for the tokenizer.
    """
    return aligned(sources, plan_vocabulary(sources, policy, base), base)


def aligned(sources: Sequence[Checkpoint], plan: Plan, base: int | None) -> list[Checkpoint]:
    """Return ``sources`` as ``plan`` aligns them; see `in_one_vocabulary`."""
    if not plan.needed(base):
        return list(sources)
    policy = plan.policy
    files = [path for source in sources for path in companions(_folder(source)) if path.is_file()]
    contents = [fingerprint(source.path) for source in sources]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    value = {"format": _FORMAT, "policy": policy.model_dump(mode="json"), "base": base}
    key = digest(value | {"sources": contents, "files": hashes})
    home = _prepared_home(plan, sources[plan.donor], cache_folder() / "vocabularies" / key)
    return [Aligned(number, sources, plan.alignment, home, key) for number in range(len(sources))]


def _prepared_home(plan: Plan, donor: Checkpoint, folder: Path) -> Path:
    """Return ``folder``, filled with config and tokenizer of the merged model by the first that asks."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_suffix(".lock")):
            if not folder.exists():
                part = Path(tempfile.mkdtemp(dir=folder.parent))
                try:
                    _fill_home(plan, donor, part)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise NotEnoughRoom(
            f"{folder.parent}: the merged tokenizer cannot be written ({error}); let {CACHE_VARIABLE} name a folder "
            "with room"
        ) from None
    return folder


def _fill_home(plan: Plan, donor: Checkpoint, to: Path) -> None:
    if plan.extended:
        plan.tokenizer.save_pretrained(to)
        for file in _folder(donor).glob("generation_config.json"):
            shutil.copyfile(file, to / file.name)
    else:
        copy_companions(_folder(donor), to)
    if plan.policy.chat_template is not None:
        (to / "chat_template.jinja").write_text(plan.policy.chat_template, encoding="utf-8")
        shutil.rmtree(to / "additional_chat_templates", ignore_errors=True)
    config = with_rows(donor.config, plan.alignment.size) if plan.changes else donor.config
    (to / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _unite(merged: Any, others: Sequence[tuple[Any, int]]) -> None:
    """Add to ``merged`` what the other tokenizers have besides: plain tokens first, then added ones, by their ids."""
    known = merged.get_vocab()
    plain: dict[str, None] = {}
    added: dict[str, Any] = {}
    for tokenizer, rows in others:
        own = {
            entry.content: entry for number, entry in sorted(tokenizer.added_tokens_decoder.items()) if number < rows
        }
        for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if number < rows and token not in known and token not in own:
                plain.setdefault(token)
        for token, entry in own.items():
            added.setdefault(token, entry)
    merged.add_tokens([token for token in plain if token not in added])
    merged.add_tokens([entry for token, entry in added.items() if token not in known])


def _tokenizer(source: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_folder(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadSource(f"{source.path}: no tokenizer that transformers can read ({text})") from None


def _folder(source: Checkpoint) -> Path:
    """Return where the tokenizer is: adapters often have none, and then it is that of their base."""
    return source.path if any((source.path / file).is_file() for file in TOKENIZER_FILES) else source.home


def _rows(source: Checkpoint) -> int:
    for name in source.order:
        if by_token(name):
            return int(source.info(name).shape[0])
    raise BadSource(f"{source.path}: no tensor looks like token embeddings, so vocabularies cannot be aligned")
