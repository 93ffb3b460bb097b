"""Where sources come from (a folder or the Hub), and how one knows that they have not changed since."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.atomic import replacing
from evomerge.errors import BadSource
from evomerge.merging.companions import tokenizer_files
from evomerge.merging.preparations import RECORDS, preparation_of
from evomerge.merging.staging import is_url, staged
from search_spaces.recipe import Recipe, Source

TOKENIZERS = "tokenizers"  # key of a recorded plan, which those of older versions lack
CACHE_VARIABLE = "EVOMERGE_CACHE"
BASIS, COEFFICIENTS = "basis.safetensors", "coefficients.safetensors"  # of experts in one basis: see `reversible`
_HUB_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    *RECORDS,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(path: str, revision: str | None = None) -> Path:
    """Return the folder of ``path``: a local folder, or what is copied here when it is not yet: a Hub id at
    ``revision``, or an fsspec URL.

    Raises:
        BadSource: no such folder, or the Hub or the store does not give the model; the text says what to do.
    """
    if is_url(path):
        return staged(path, patterns=_HUB_FILES, cache=cache_folder())
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or not _HUB_ID.fullmatch(path):
        raise BadSource(f"{path}: there is no such model folder, and this is not a Hub id (owner/name)")
    return _download(path, revision)


def _download(path: str, revision: str | None) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    where = f"{path}@{revision}" if revision else path
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(_HUB_FILES)))
    except hub.GatedRepoError:
        raise BadSource(f"{where}: gated on the Hub; accept its licence there, then run `hf auth login`") from None
    except hub.RevisionNotFoundError:
        raise BadSource(f"{where}: the Hub has the model, but not this revision") from None
    except hub.RepositoryNotFoundError:
        raise BadSource(f"{where}: no such folder, no such model on the Hub (private? `hf auth login`)") from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        raise BadSource(
            f"{where}: no such folder here, not in the Hub's cache, and the Hub cannot be reached; give a folder, "
            "or download it first where there is a network (`hf download`)"
        ) from None
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as error:
        raise BadSource(f"{where}: cannot be downloaded ({str(error).splitlines()[0]})") from None


def fingerprint(folder: Path, *, cache: Path | None = None) -> str:
    """Return the SHA-256 (hexadecimal) over the names and contents of the config and every safetensors file.

    To coefficients belongs their basis, which lies beside the folder.

    Digests of single files are remembered under ``cache`` (default: the folder that EVOMERGE_CACHE names, else the
    user's cache folder) by path, size and time of modification.

    Raises:
        BadSource: the folder holds neither, or a file cannot be read.
    """
    folder = Path(folder)
    files = sorted([*folder.glob("config.json"), *folder.glob("adapter_config.json"), *folder.glob("*.safetensors")])
    if (folder / COEFFICIENTS).is_file():
        files.append(folder.parent / BASIS)
    if not files:
        raise BadSource(f"{folder}: there is nothing to fingerprint (no config.json, no safetensors)")
    return _total(files, cache)


def tokenizer_fingerprint(folder: Path) -> str | None:
    """Return the SHA-256 over the names and contents of the tokenizer's files, chat templates included; None without.

    Sources are named by weights and config alone: this is what searches and exported recipes remember beside that.

    Raises:
        BadSource: a file cannot be read.
    """
    files = tokenizer_files(folder)
    return _total(files, None) if files else None


def _total(files: Iterable[Path], cache: Path | None) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{_file_digest(file, cache or cache_folder())}\n".encode())
    return total.hexdigest()


def cache_folder() -> Path:
    """Return the folder of this user's cache; it need not exist."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge"


def pin(source: Source, *, cache: Path | None = None) -> Source:
    """Return ``source`` with its digests, and for a Hub id with the commit that was found, filled in.

    Raises:
        BadSource: see `resolve` and `fingerprint`.
    """
    folder = resolve(source.path, source.revision)
    revision = source.revision
    if not Path(source.path).expanduser().is_dir() and _COMMIT.fullmatch(folder.name):
        revision = folder.name
    found = {"digest": fingerprint(folder, cache=cache), "preparation": preparation_of(folder)}
    return source.model_copy(update={**found, "revision": revision})


def on_this_node(source: Source, folder: str) -> Path:
    """Return the folder of ``source`` on the machine of this process; ``folder`` is where another one found it.

    Raises:
        BadSource: it is not here and cannot be brought here, or is not the same here.
    """
    return Path(folder) if Path(folder).is_dir() else verify(source)


def with_tokenizers(recipe: Recipe, known: Mapping[tuple[str, str | None], str | None] | None = None) -> Recipe:
    """Return ``recipe`` whose sources of the merged model's tokenizer name that tokenizer, those that do already as is.

    Args:
        known: digests that a search recorded, by path and digest of the source; others are made from the files, or
            with ``known`` not at all.

    Raises:
        BadSource: see `resolve` and `tokenizer_fingerprint`.
    """
    positions = range(len(recipe.sources)) if recipe.vocabulary is not None else (recipe.tokenizer,)
    sources = list(recipe.sources)
    for position in positions:
        source = sources[position]
        if source.tokenizer is None:
            found = (
                tokenizer_fingerprint(resolve(source.path, source.revision))
                if known is None
                else known.get((source.path, source.digest))
            )
            sources[position] = source.model_copy(update={"tokenizer": found})
    return recipe.model_copy(update={"sources": tuple(sources)})


def verify(source: Source, *, cache: Path | None = None) -> Path:
    """Return the folder of ``source``, whose content is still what its digest says (when it has one).

    Raises:
        BadSource: the content has changed; both digests are named. Or the tokenizer that the recipe names has.
    """
    folder = resolve(source.path, source.revision)
    if source.digest is not None:
        found = fingerprint(folder, cache=cache)
        if found != source.digest:
            raise BadSource(
                f"{source.path}: the weights or the config have changed: expected digest {source.digest}, "
                f"found {found}; restore the files, or start anew with this source"
            )
    if source.tokenizer is not None and tokenizer_fingerprint(folder) != source.tokenizer:
        raise BadSource(
            f"{source.path}: the tokenizer's files have changed since the recipe was made; restore them, or take "
            f"`tokenizer` out of this source in a recipe's file to merge with what is there now"
        )
    if source.preparation is not None and preparation_of(folder) != source.preparation:
        raise BadSource(
            f"{source.path}: the record of its preparation ({' or '.join(RECORDS)}) is gone or another: expected "
            f"digest {source.preparation}; restore the file"
        )
    return folder


def content(source: Source) -> str:
    """Return the digest of the content of ``source``.

    Raises:
        BadSource: see `resolve` and `fingerprint`.
    """
    return source.digest or fingerprint(resolve(source.path, source.revision))


def _file_digest(file: Path, cache: Path) -> str:
    try:
        real = file.resolve(strict=True)
        stat = real.stat()
        key = hashlib.sha256(f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
        remembered = cache / "fingerprints" / f"{key}.json"
        if remembered.is_file():
            try:
                return str(json.loads(remembered.read_text(encoding="utf-8"))["sha256"])
            except (ValueError, KeyError, TypeError):
                remembered.unlink(missing_ok=True)  # damaged by something else: compute it again
        with real.open("rb") as stream:
            value = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadSource(f"{file}: cannot be read ({error})") from None
    _remember(remembered, value, real)
    return value


def _remember(remembered: Path, value: str, real: Path) -> None:
    try:
        with replacing(remembered) as temporary:
            temporary.write_text(json.dumps({"sha256": value, "path": str(real)}), encoding="utf-8")
    except OSError:
        return  # a read-only cache costs time, not correctness
