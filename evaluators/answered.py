"""Prompts with their reference answers, in tokens: what models are run on for statistics, not for scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.encoding import Encoder, Prompt
from evaluators.errors import TaskError
from evaluators.evaluation import Documents
from evaluators.library_state import calling_lm_eval
from evaluators.loaded import LoadedTask
from evaluators.objective import EvaluationSettings
from evaluators.objective_kinds import AnyObjective, Likelihood
from evaluators.references import task_of
from evaluators.requests import DocumentRequests, RequestBook
from evaluators.splits import Splits, make_splits
from evaluators.tasks import TaskSuite, default_objectives


@dataclass(frozen=True)
class Answered:
    """A prompt and its reference answer.

    Attributes:
        tokens: of the prompt, then of the answer.
        answer: position of the answer's first token.
    """

    tokens: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class PromptSource:
    """Tasks that prompts are taken from, those of the objectives and others, and their disjoint documents."""

    suite: TaskSuite
    splits: Splits

    @classmethod
    def of(cls, suite: TaskSuite, tasks: Sequence[str], settings: EvaluationSettings) -> PromptSource:
        """Return the tasks of ``suite`` with those of ``tasks`` that are not among them.

        Raises:
            TaskError: a task is unknown or cannot be loaded; it has too few documents for three splits; or one of its
                search documents is a validation or test document of another task.
        """
        others = [task for task in dict.fromkeys(tasks) if task not in suite.loaded]
        if others:
            objectives: list[AnyObjective] = [o for task in others for o in default_objectives(task, settings)]
            loaded = TaskSuite.load(objectives, settings).loaded
            suite = replace(suite, loaded={**suite.loaded, **loaded})
        return cls(suite, make_splits(suite, settings))

    def prompts(
        self,
        tasks: Sequence[str],
        count: int,
        tokenizer: Any,
        *,
        context: int,
        most_tokens: int,
        cache: Path | None = None,
    ) -> dict[str, tuple[Answered, ...]]:
        """Return the first ``count`` search documents of each of ``tasks``, as prompts with their reference answers.

        Args:
            context: of the models, in tokens.
            most_tokens: of prompt and answer; longer ones lose their beginning, then the end of the answer.
            cache: folder of tokenised requests, which evaluators share.

        Raises:
            TaskError: a task is not one of these, the reference answers are not known, or a template fails.
        """
        if unknown := [task for task in tasks if task not in self.suite.loaded]:
            raise TaskError(f"calibration: task {unknown[0]} is a group or a tag; name its tasks")
        asked = {task: _scored(self.suite.loaded[task]) for task in tasks}
        suite = replace(self.suite, loaded=asked)
        book = RequestBook(suite, Encoder(tokenizer, max_length=context), cache=cache)
        documents = Documents({task: self.splits.search.ids[task][:count] for task in asked})
        found = {}
        for part, numbers in suite.split_into_parts(documents).ids.items():
            task = asked[task_of(part)]
            found[task.name] = tuple(
                answered
                for number, request in zip(numbers, book.requests(part, numbers), strict=True)
                for answered in _answered(task, number, request, min(most_tokens, context))
            )
        return found


def _scored(loaded: LoadedTask) -> LoadedTask:
    """Return the task with the likelihood of its reference answers as the only thing that is asked of it."""
    gauged = (Likelihood(kind="likelihood", task=loaded.name),) if loaded.kind == "generate_until" else ()
    return replace(loaded, measures=(), gauged=gauged)


def _answered(loaded: LoadedTask, number: int, request: DocumentRequests, most_tokens: int) -> Iterator[Answered]:
    """Yield the right answer, the first of several, after its prompt; of a text to be scored whole, all its windows."""
    encoded = request.encoded
    chosen = encoded if loaded.kind == "loglikelihood_rolling" else (encoded[_right(loaded, number, len(encoded))],)
    for windows in chosen:
        assert not isinstance(windows, Prompt)
        for window in windows:
            answer = window.continuation[: most_tokens - 1]
            prompt = window.context[-(most_tokens - len(answer)) :]
            yield Answered((*prompt, *answer), len(prompt))


def _right(loaded: LoadedTask, number: int, requests: int) -> int:
    """Return the position of the request with the right answer."""
    if loaded.kind != "multiple_choice":
        return 0
    document = loaded.documents[number]
    with calling_lm_eval(trusted=loaded.trusted):
        task = loaded.task
        found: Any = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        if isinstance(found, list):
            found = found[0] if found else -1
        if isinstance(found, str):
            choices = task.doc_to_choice(document)
            found = choices.index(found) if found in choices else -1
    if not isinstance(found, int) or not 0 <= found < requests:
        raise TaskError(f"calibration: the right choice of document {number} of task {loaded.name} is not known")
    return found
