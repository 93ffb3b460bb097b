"""The commonest metrics over all documents of a task at once, equal to the task's own `process_results`.

`acc`, `acc_norm` and `acc_bytes` of multiple-choice tasks and `exact_match` of generated answers need, besides the
answers, only what is fixed for the whole search: the right choices, lengths, targets. `choices_of` and
`exact_match_of` prepare that, or return None where a task does anything that is not plain; then lm-eval's own
`process_results` decides.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask

from evaluators.evaluation import Floats

_EXACT_MATCH_OPTIONS = {"regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers"}


@dataclass(frozen=True)
class Choices:
    """The choices of the documents of a task; shape (documents, most choices).

    Attributes:
        present: which entries are choices; in row-major order they are the task's requests.
        right: which choices are right.
        lengths: per accuracy metric, what log-likelihoods are divided by.
    """

    present: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]
    lengths: Mapping[str, Floats]

    def accuracy(self, metric: str, log_likelihoods: Floats) -> list[float]:
        """Return 1.0 or 0.0 per document; ``log_likelihoods`` is (requests,)."""
        best = (self._table(log_likelihoods) / self.lengths[metric]).argmax(1)
        hits: list[float] = self.right[np.arange(len(best)), best].astype(np.float64).tolist()
        return hits

    @property
    def has_margins(self) -> bool:
        """Whether every document has a right choice and a wrong one."""
        wrong = self.present & ~self.right
        return bool(self.right.any(1).all() and wrong.any(1).all())

    def margin(self, log_likelihoods: Floats) -> float:
        """Return the mean over documents of the best right choice minus the best wrong one, in nats."""
        table = self._table(log_likelihoods)
        right = np.where(self.right, table, -np.inf).max(1)
        wrong = np.where(self.right, -np.inf, table).max(1)
        return float((right - wrong).mean())

    def _table(self, log_likelihoods: Floats) -> Floats:
        table = np.full(self.present.shape, -np.inf)
        table[self.present] = log_likelihoods
        return table


def choices_of(task: Any, documents: Sequence[Mapping[str, Any]], counts: npt.NDArray[np.int64]) -> Choices | None:
    """Return the choices of ``documents``, or None unless ``counts`` requests each are just their choices."""
    if task.OUTPUT_TYPE != "multiple_choice" or not _is_plain(task):
        return None
    choices = [task.doc_to_choice(document) for document in documents]
    golds = [(task.doc_to_text if task.multiple_input else task.doc_to_target)(document) for document in documents]
    if [len(c) for c in choices] != counts.tolist() or not all(map(all, choices)):
        return None
    right = [_right(c, gold, several=bool(task.multiple_target)) for c, gold in zip(choices, golds, strict=True)]
    if any(r is None for r in right):
        return None
    shape = (len(documents), int(counts.max()))
    present = np.arange(shape[1]) < counts[:, None]
    flat = [text for texts in choices for text in texts]
    sizes = {
        "acc": [1] * len(flat),
        "acc_norm": [len(text) for text in flat],
        "acc_bytes": [len(text.encode("utf-8")) for text in flat],
    }
    lengths = {metric: _spread(present, size, fill=1.0) for metric, size in sizes.items()}
    flags = [flag for r in right for flag in r or ()]
    return Choices(present, _spread(present, flags, fill=0.0).astype(bool), lengths)


def _right(choices: Sequence[str], gold: Any, *, several: bool) -> list[bool] | None:
    """Which of ``choices`` lm-eval takes for right, None where it would raise or compare unlike things."""
    if several:
        return [i in gold for i in range(len(choices))] if isinstance(gold, list) else None
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -1
    return [i == gold for i in range(len(choices))] if isinstance(gold, int) else None


def _spread(present: npt.NDArray[np.bool_], values: Sequence[float], *, fill: float) -> Floats:
    table = np.full(present.shape, fill)
    table[present] = values
    return table


@dataclass(frozen=True)
class ExactMatch:
    """The targets of the documents of a task.

    Attributes:
        targets: (targets,) normalised text of all targets, and `owners`: (targets,) the document of each.
        options: what is ignored in a comparison, as in the task file.
    """

    targets: npt.NDArray[np.str_]
    owners: npt.NDArray[np.int64]
    options: Mapping[str, Any]

    def __call__(self, answers: Sequence[str]) -> list[float]:
        """Return 1.0 per document whose answer equals one of its targets, else 0.0."""
        given = _normalised(answers, **self.options)
        hits = np.zeros(len(answers))
        hits[self.owners[given[self.owners] == self.targets]] = 1.0
        matches: list[float] = hits.tolist()
        return matches


def exact_match_of(task: Any, documents: Sequence[Mapping[str, Any]]) -> ExactMatch | None:
    """Return the targets of ``documents`` for lm-eval's own `exact_match`, None if the task's is another."""
    if task.OUTPUT_TYPE != "generate_until" or not _is_plain(task):
        return None
    options = task._metric_fn_kwargs.get("exact_match", {})
    own = task._metric_fn_list.get("exact_match") is not metric_registry["exact_match"]
    if own or not set(options) <= _EXACT_MATCH_OPTIONS:
        return None
    targets = [targets_of(task, document) for document in documents]
    if not all(isinstance(text, str) for texts in targets for text in texts):
        return None
    owners = np.repeat(np.arange(len(targets)), [len(texts) for texts in targets])
    return ExactMatch(_normalised([text for texts in targets for text in texts], **options), owners, options)


def targets_of(task: Any, document: Mapping[str, Any]) -> list[Any]:
    """Return the answers that lm-eval takes for right in a task that generates."""
    target = task.doc_to_target(document)
    if task.config.doc_to_choice is not None:
        target = task.doc_to_choice(document)[target]
    elif task.multiple_target:
        target = list(target)
    elif not isinstance(target, str):
        target = str(target)
    return target if task.multiple_target and isinstance(target, list) else [target]


def _normalised(
    texts: Sequence[str],
    *,
    regexes_to_ignore: Sequence[str] | None = None,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> npt.NDArray[np.str_]:
    """The texts as lm-eval's exact match compares them, in its order of steps."""
    for pattern in regexes_to_ignore or ():
        texts = [re.sub(pattern, "", text) for text in texts]
    array = np.asarray(texts, dtype=np.str_)
    if ignore_case:
        array = np.char.lower(array)
    removed = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")
    if removed:
        table = str.maketrans("", "", removed)
        array = np.asarray([text.translate(table) for text in array.tolist()], dtype=np.str_)
    return array


def _is_plain(task: Any) -> bool:
    """Whether scores come from lm-eval's standard `process_results`, and requests are just the documents' own."""
    return (
        type(task).process_results is ConfigurableTask.process_results
        and not callable(task.config.process_results)
        and "acc_mutual_info" not in task._metric_fn_list
    )
