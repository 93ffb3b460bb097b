"""The requests of every task, built and tokenised when a document is first measured, then kept."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lm_eval.api.instance import Instance

from evaluators.encoding import Encoded, Prompt, Window
from evaluators.errors import TaskError, one_line
from evaluators.library_state import calling_lm_eval
from evaluators.loaded import LoadedTask
from evaluators.request_cache import RequestCache, Requests
from evaluators.sampling import request_key
from evaluators.tasks import TaskSuite


@dataclass(frozen=True)
class DocumentRequests:
    """The requests of one document in lm-eval's order, with their tokens.

    Attributes:
        encoded: one per instance; as many as the task has `repeats` for each where answers are sampled.
    """

    instances: tuple[Instance, ...]
    encoded: tuple[Encoded, ...]


class Encodes(Protocol):
    """What a book needs of an encoder."""

    apply_chat_template: Any

    def prompt(self, instance: Instance) -> Prompt:
        """Return what is generated from."""

    def windows(self, instance: Instance) -> tuple[Window, ...]:
        """Return what is scored."""


class RequestBook:
    """The requests of a suite for one tokenizer.

    With few-shot examples the requests of a task are built for all its documents even if few are measured: lm-eval
    draws the examples in sequence, so a subset built alone would get other prompts.
    """

    def __init__(self, suite: TaskSuite, encoder: Encodes, *, cache: Path | None = None) -> None:
        """Make a book that also looks into the folder ``cache``, and keeps there what it builds."""
        self._suite = suite
        self._cache = RequestCache(cache, encoder, suite.settings)
        self._encoder = encoder
        self._instances: dict[str, dict[int, list[Instance]]] = {name: {} for name in suite.parts}
        self._documents: dict[tuple[str, int], DocumentRequests] = {}

    def requests(self, task: str, documents: Sequence[int]) -> list[DocumentRequests]:
        """Return the requests of each of ``documents``.

        Raises:
            TaskError: the task's templates fail on a document, or the document does not fit the model.
        """
        new = [number for number in documents if (task, number) not in self._documents]
        if new:
            loaded = self._suite.parts[task]
            found = self._cache.get(loaded, new, lambda: self._made(task, new))
            for number, (told, encoded) in zip(new, found, strict=True):
                instances = self._sorted(task, number) or _retold(loaded, number, told)
                self._documents[task, number] = DocumentRequests(instances, encoded)
        return [self._documents[task, number] for number in documents]

    def _made(self, task: str, numbers: Sequence[int]) -> Requests:
        self._build_new(task, numbers)
        made: Requests = []
        for number in numbers:
            instances = self._sorted(task, number)
            told = tuple((instance.request_type, _last_text(instance)) for instance in instances)
            made.append((told, tuple(answer for instance in instances for answer in self._encode(instance))))
        return made

    def _sorted(self, task: str, number: int) -> tuple[Instance, ...]:
        return tuple(sorted(self._instances[task].get(number, ()), key=lambda instance: instance.idx))

    def _build_new(self, name: str, numbers: Sequence[int]) -> None:
        loaded, built = self._suite.parts[name], self._instances[name]
        if loaded.task.config.num_fewshot:
            numbers = range(len(loaded.documents))
        missing = [number for number in dict.fromkeys(numbers) if number not in built]
        if not missing:
            return
        with calling_lm_eval(trusted=loaded.trusted), _only(loaded, missing):
            self._build(loaded)
        for instance in loaded.task.instances:
            built.setdefault(instance.doc_id, []).append(instance)

    def _build(self, loaded: LoadedTask) -> None:
        settings = self._suite.settings
        loaded.task.set_fewshot_seed(settings.fewshot_seed)
        options: dict[str, Any] = {"system_instruction": settings.system_instruction}
        if settings.apply_chat_template:
            options |= {
                "apply_chat_template": True,
                "fewshot_as_multiturn": settings.fewshot_as_multiturn,
                "chat_template": self._encoder.apply_chat_template,
            }
        try:
            loaded.task.build_all_requests(**options)
        except Exception as error:  # templates, user functions and chat templates raise what they like
            where = inspect.trace()[-1].function
            raise TaskError(
                f"the prompts of task {loaded.name} cannot be built: {type(error).__name__}: "
                f"{one_line(error)} (in {where})"
            ) from error

    def _encode(self, instance: Instance) -> Iterator[Encoded]:
        try:
            if instance.request_type == "generate_until":
                yield from self._repeated(instance, self._encoder.prompt(instance))
            else:
                yield self._encoder.windows(instance)
        except ValueError as error:
            raise TaskError(f"task {instance.task_name}, document {instance.doc_id}: {error}") from error

    def _repeated(self, instance: Instance, prompt: Prompt) -> Iterator[Prompt]:
        if prompt.sampling is None:  # every repeat would say the same
            yield prompt
            return
        name, number = str(instance.task_name), int(instance.doc_id or 0)
        document = self._suite.loaded[name].document_digests[number]
        for repeat in range(int(instance.repeats or 1)):
            key = request_key(self._suite.settings.sampling_seed or 0, name, document, instance.idx, repeat)
            yield replace(prompt, key=key)


@contextmanager
def _only(loaded: LoadedTask, numbers: Sequence[int]) -> Iterator[None]:
    """Inside, the task's documents to build requests for are ``numbers``, under these numbers.

    lm-eval's own selection of samples numbers the chosen documents anew.
    """
    chosen = [(number, loaded.documents[number]) for number in numbers]
    loaded.task.doc_iterator = lambda **_: iter(chosen)
    try:
        yield
    finally:
        del loaded.task.doc_iterator


def _last_text(instance: Instance) -> str:
    """The text whose likelihood an instance asks for, by whose length scores are divided; none of generation."""
    last = instance.args[-1]
    return last if isinstance(last, str) else ""


def _retold(loaded: LoadedTask, number: int, told: Sequence[tuple[str, str]]) -> tuple[Instance, ...]:
    """Instances as they are needed once they are in tokens: contexts and options are left out."""
    document: Any = loaded.documents[number]
    return tuple(
        Instance(request_type=kind, doc=document, arguments=(text,), idx=idx, metadata=(loaded.name, number, 1))
        for idx, (kind, text) in enumerate(told)
    )
