"""Every request of every task, built once for all documents, tokenised when a document is first measured."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lm_eval.api.instance import Instance

from evaluators.encoding import Encoder, Prompt, Window
from evaluators.errors import TaskError
from evaluators.library_state import calling_lm_eval
from evaluators.tasks import LoadedTask, TaskSuite

Encoded: TypeAlias = tuple[Window, ...] | Prompt


@dataclass(frozen=True)
class DocumentRequests:
    """The requests of one document in lm-eval's order, with their tokens."""

    instances: tuple[Instance, ...]
    encoded: tuple[Encoded, ...]


class RequestBook:
    """The requests of a suite for one tokenizer.

    Requests are built for all documents even if few are measured: lm-eval draws few-shot examples in sequence, so a
    subset built alone would get other prompts.
    """

    def __init__(self, suite: TaskSuite, encoder: Encoder) -> None:
        self._suite = suite
        self._encoder = encoder
        self._instances: dict[str, dict[int, list[Instance]]] = {}
        self._documents: dict[tuple[str, int], DocumentRequests] = {}

    def requests(self, task: str, document: int) -> DocumentRequests:
        """Return the requests of a document.

        Raises:
            TaskError: the task's templates fail on a document, or the document does not fit the model.
        """
        key = (task, document)
        if key not in self._documents:
            instances = tuple(self._built(task)[document])
            self._documents[key] = DocumentRequests(instances, tuple(map(self._encode, instances)))
        return self._documents[key]

    def _built(self, name: str) -> Mapping[int, list[Instance]]:
        if name not in self._instances:
            loaded = self._suite.loaded[name]
            with calling_lm_eval(trusted=loaded.trusted):
                self._build(loaded)
            by_document: dict[int, list[Instance]] = {}
            for instance in loaded.task.instances:
                by_document.setdefault(instance.doc_id, []).append(instance)
            for instances in by_document.values():
                instances.sort(key=lambda instance: instance.idx)
            self._instances[name] = by_document
        return self._instances[name]

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
                f"{' '.join(str(error).split())} (in {where})"
            ) from error

    def _encode(self, instance: Instance) -> Encoded:
        try:
            if instance.request_type == "generate_until":
                return self._encoder.prompt(instance)
            return self._encoder.windows(instance)
        except ValueError as error:
            raise TaskError(f"task {instance.task_name}, document {instance.doc_id}: {error}") from error
