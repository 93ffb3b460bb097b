"""Tokenised requests on disk: made once a machine, found again by every worker and every later run.

An entry holds the requests of some documents of one task. Its name is the digest of all that they follow from, so an
entry is never stale: a changed task, document, tokenizer, setting or library is another name. Tasks with functions of
the user's own are not kept, because what those call is not known. Entries are compressed NumPy archives without
pickles, written by one rename; a damaged one is made again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from evaluators.encoding import Encoded, Encoder, Prompt, Window
from evaluators.fingerprint import task_digest
from evaluators.loaded import LoadedTask
from evaluators.objective import EvaluationSettings

Requests: TypeAlias = list[tuple[tuple[tuple[str, str], ...], tuple[Encoded, ...]]]
"""Of each document: kind and last text of lm-eval's instances, and what they are in tokens."""

FORMAT = 1
# settings that no request follows from; all others count
_IRRELEVANT = {
    "search_documents", "validation_documents", "test_documents", "split_seed", "include_path", "trusted_paths",
    "tokens_per_batch", "timeout_seconds", "racing", "minibatches",
}  # fmt: skip
_PROMPT = TypeAdapter(Prompt)
_DAMAGES = (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile)


class RequestCache:
    """The entries in one folder for one tokenizer; without a folder, or for a tokenizer of Python, nothing is kept."""

    def __init__(self, folder: Path | None, encoder: Any, settings: EvaluationSettings) -> None:
        tokenizer = tokenizer_digest(encoder.tokenizer) if isinstance(encoder, Encoder) and folder else None
        self._folder = folder if tokenizer is not None else None
        self._base = {
            "format": FORMAT,
            "tokenizer": tokenizer,
            "max_length": encoder.max_length if tokenizer is not None else None,
            "settings": settings.model_dump(mode="json", exclude=_IRRELEVANT),
            "versions": {name: version(name) for name in ("lm_eval", "transformers", "tokenizers", "jinja2")},
        }

    def get(self, loaded: LoadedTask, numbers: Sequence[int], make: Callable[[], Requests]) -> Requests:
        """Return the requests of the documents ``numbers``: read, or made and kept. One process makes, others wait."""
        if self._folder is None or _has_own_code(dataclasses.asdict(loaded.task.config)):
            return make()
        path = self._folder / f"{self._digest(loaded, numbers)}.npz"
        if (found := _read(path)) is not None:
            return found
        with _locked(self._folder):
            if (found := _read(path)) is None:
                found = make()
                _write(path, found)
        return found

    def _digest(self, loaded: LoadedTask, numbers: Sequence[int]) -> str:
        # with examples a prompt follows from all documents: they are drawn in sequence
        all_count = bool(loaded.task.config.num_fewshot)
        digests = loaded.document_digests
        what = {
            **self._base,
            "task": [loaded.name, task_digest(loaded.task)],
            "documents": [[number, digests[number]] for number in numbers],
            "others": digests if all_count else None,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _has_own_code(value: Any) -> bool:
    """Whether ``value``, or anything in it, is a function that is not lm-eval's."""
    if isinstance(value, dict):
        return any(map(_has_own_code, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_own_code, value))
    if isinstance(value, functools.partial):
        return _has_own_code(value.func)
    return callable(value) and not str(getattr(value, "__module__", "")).startswith("lm_eval.")


def tokenizer_digest(tokenizer: Any) -> str | None:
    """Return the SHA-256 of all that ``tokenizer`` turns text into tokens by; None if that is Python code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    what = {
        "tokenizer": backend.to_str(),
        "class": type(tokenizer).__qualname__,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "options": {key: str(value) for key, value in tokenizer.init_kwargs.items() if not key.endswith("_file")},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path) -> Requests | None:
    """The entry, or None if there is none or it is damaged, which is said."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _decoded(archive["tokens"], archive["lengths"], json.loads(archive["structure"].tobytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _DAMAGES as error:
        warnings.warn(f"{path}: damaged, made again ({type(error).__name__}: {error})", stacklevel=2)
        return None


def _write(path: Path, requests: Requests) -> None:
    tokens, lengths, structure = _encoded(requests)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as stream:
            np.savez_compressed(stream, tokens=tokens, lengths=lengths, structure=structure)
        Path(stream.name).replace(path)
    except OSError as error:
        _warn_unkept(path.parent, error)


def _warn_unkept(folder: Path, error: OSError) -> None:
    warnings.warn(f"{folder}: tokenised requests cannot be kept ({error})", stacklevel=2)


def _encoded(requests: Requests) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each different sequence of tokens once, and JSON that refers to them by number."""
    numbers: dict[tuple[int, ...], int] = {}

    def number(tokens: tuple[int, ...]) -> int:
        return numbers.setdefault(tokens, len(numbers))

    def described(encoded: Encoded) -> Any:
        if isinstance(encoded, Prompt):
            fields = _PROMPT.dump_python(encoded, mode="json", exclude={"tokens"})
            return {**fields, "tokens": number(encoded.tokens)}
        return [[number(window.context), number(window.continuation)] for window in encoded]

    structure = [[told, list(map(described, encoded))] for told, encoded in requests]
    lengths = np.array([len(tokens) for tokens in numbers], dtype=np.int64)
    flat = np.fromiter((token for tokens in numbers for token in tokens), dtype=np.int32, count=int(lengths.sum()))
    return flat, lengths, np.frombuffer(json.dumps(structure).encode(), dtype=np.uint8)


def _decoded(flat: np.ndarray, lengths: np.ndarray, structure: Any) -> Requests:
    parts = np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
    sequences = [tuple(part.tolist()) for part in parts]

    def restored(described: Any) -> Encoded:
        if isinstance(described, dict):
            return _PROMPT.validate_python({**described, "tokens": sequences[described["tokens"]]})
        return tuple(Window(sequences[context], sequences[answer]) for context, answer in described)

    return [(tuple((kind, text) for kind, text in told), tuple(map(restored, encoded))) for told, encoded in structure]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone on this machine inside; where the folder cannot be written, not alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("a")
    except OSError as error:
        _warn_unkept(folder, error)
        yield
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
