"""`evomerge compress`: a mixture of experts with fewer of them, as a checkpoint that recipes take like any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import UserMistake
from evomerge.shares import Progress
from evomerge.targets import Place, local

if TYPE_CHECKING:
    from search_spaces.calibration import Calibration

MOST_TOKENS = 2048  # of a prompt


def compress(
    model: str, experts: int, prompts: Path, to: Place, *, like: str | None = None, progress: Progress | None = None
) -> list[str]:
    """Write ``model`` to ``to`` with ``experts`` experts a layer, each the merge of some of its own.

    Args:
        model: folder, Hub id or URL.
        like: the same of a model whose experts decide what is merged, by default the model itself: the base, where
            models that share one shall be merged afterwards.
        prompts: text with a prompt a line, or calibration prompts as `export` writes them (JSON).

    Returns:
        What the user should know of what was written.

    Raises:
        UserMistake: the model cannot be compressed so far, the prompts cannot be read, or ``to`` exists.
    """
    from evomerge.atomic import check_free
    from evomerge.merging.checkpoint import Checkpoint
    from evomerge.merging.compressed import write_compressed
    from evomerge.merging.compression import check_count, plan
    from evomerge.merging.sources import resolve

    own = Checkpoint.open(resolve(model, None))
    reference = own if like is None else Checkpoint.open(resolve(like, None))
    check_count(own.config, own.path, experts)
    with local(to) as folder:
        check_free(folder)
        calibration, remarks = read_prompts(prompts, own.path)
        found = plan(own, reference, calibration, experts, progress=progress)
        write_compressed(own, found, folder)
    layers, before = len(found.layers), found.layers[0].mixture.experts
    remarks.append(f"{before} experts became {experts} in each of {layers} layers")
    if found.unreached:
        remarks.append(f"no prompt reached {found.unreached} of {layers * before} experts: they weigh nothing or alike")
    return remarks


def read_prompts(file: Path, tokenizer: Path) -> tuple[Calibration, list[str]]:
    """Return the prompts in ``file``, and what the user should know of them.

    Args:
        tokenizer: folder of the model whose tokenizer makes tokens of text.

    Raises:
        UserMistake: the file cannot be read, or holds no prompts.
    """
    from search_spaces.calibration import Calibration

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"--prompts {file}: cannot be read ({error})") from None
    if file.suffix == ".json":
        try:
            return Calibration.model_validate_json(text), []
        except ValueError:
            raise UserMistake(
                f"--prompts {file}: not calibration prompts as `evomerge export` writes them; the name of text with a "
                "prompt a line must not end in .json"
            ) from None
    return _tokenised(file, text, tokenizer)


def _tokenised(file: Path, text: str, folder: Path) -> tuple[Calibration, list[str]]:
    from transformers import AutoConfig, AutoTokenizer

    from evaluators.context import context_length
    from search_spaces.calibration import Calibration, Sample

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserMistake(f"{folder}: its tokenizer cannot be loaded ({first}); give prompts as JSON") from None
    most = min(MOST_TOKENS, context_length(AutoConfig.from_pretrained(folder, trust_remote_code=False), tokenizer))
    samples, longer = [], 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        tokens = tokenizer(line, truncation=False, verbose=False)["input_ids"]
        if len(tokens) < 2:  # noqa: PLR2004 - what follows a token is what a router decides about
            raise UserMistake(f"--prompts {file}: line {number} is a single token; expected a prompt a line")
        longer += len(tokens) > most
        samples.append(Sample(tokens=tuple(tokens[:most]), answer=1))
    if not samples:
        raise UserMistake(f"--prompts {file}: there are no prompts; expected text with a prompt a line")
    remarks = [f"{longer} prompts are longer than {most} tokens and were cut there"] if longer else []
    return Calibration(samples=tuple(samples), experts=(tuple(range(len(samples))),)), remarks
