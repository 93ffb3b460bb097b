"""What can be checked of the kinds of objectives before a model is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluators.errors import TaskError
from evaluators.fast_metrics import Choices, choices_of
from evaluators.languages import LanguageDetector
from evaluators.library_state import calling_lm_eval
from evaluators.loaded import LoadedTask
from evaluators.metrics import is_mean
from evaluators.objective_kinds import GENERATES, Language, Likelihood


def check_objectives(loaded: LoadedTask) -> None:
    """Check before a model is there what can be checked of the kinds of objectives on a task.

    Raises:
        TaskError: the task does not generate, where responses are judged; a metric under a language is no mean; the
            language is unknown or its library missing; the right choices are not known.
    """
    for objective in loaded.gauged:
        if isinstance(objective, GENERATES) and loaded.kind != "generate_until":
            raise TaskError(
                f"objective {objective.name} judges generated responses, but task {loaded.name} is "
                f"{loaded.kind}; name a task with output_type generate_until"
            )
        if isinstance(objective, Language):
            LanguageDetector(objective.language)
            _check_mean(objective, loaded)
        if isinstance(objective, Likelihood) and loaded.kind == "multiple_choice" and loaded.documents:
            with calling_lm_eval(trusted=loaded.trusted):
                first = loaded.documents[0]
                plain_choices(loaded, [first], np.array([len(loaded.task.doc_to_choice(first))]))


def _check_mean(objective: Language, loaded: LoadedTask) -> None:
    counted = objective.counted
    measure = next((m for m in loaded.measures if counted and m.name == counted.name), None)
    if measure and not is_mean(loaded.task, measure.metric):
        raise TaskError(f"objective {objective.name}: {measure.metric} is no mean over documents, so it cannot count")


def plain_choices(loaded: LoadedTask, documents: Sequence[Mapping[str, Any]], counts: npt.NDArray[np.int64]) -> Choices:
    """Return the choices of ``documents``; call inside `calling_lm_eval`.

    Raises:
        TaskError: lm-eval alone knows which are right.
    """
    choices = choices_of(loaded.task, documents, counts)
    if choices is None:
        raise TaskError(
            f"the right choices of task {loaded.name} are not known (it has a process_results of its own or "
            "acc_mutual_info); likelihood needs plain choices"
        )
    return choices
