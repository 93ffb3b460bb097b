"""From a search file to calibration prompts, kept where workers and exports find them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from evaluators.objective import EvaluationSettings
from evomerge.config import SearchFile
from search_spaces.calibration import Calibration, CalibrationSettings, Sample
from search_spaces.spaces import needs_calibration

if TYPE_CHECKING:
    from evaluators.tasks import TaskSuite
    from evomerge.merging.checkpoint import Checkpoint

CALIBRATION = "calibration"  # key of a recorded plan: the prompts, so that a record alone can rebuild its candidates


def make_calibration(
    file: SearchFile, suite: TaskSuite, settings: EvaluationSettings, checkpoint: Checkpoint
) -> Calibration | None:
    """Return the calibration prompts of ``file``, now in the cache; None if its space has no use for any.

    Args:
        suite: the tasks of the objectives.
        checkpoint: whose tokenizer and context are those of all.

    Raises:
        TaskError: a task of the section cannot be used.
        NotEnoughRoom: they cannot be kept.
    """
    if not needs_calibration(file.space):
        return None
    from transformers import AutoConfig, AutoTokenizer

    from evaluators.answered import PromptSource
    from evaluators.context import context_length
    from evomerge.merging.aligned import tokenizer_folder
    from evomerge.merging.calibrations import keep
    from evomerge.merging.sources import cache_folder

    asked = file.calibration or CalibrationSettings()
    of_experts = [asked.tasks.get(expert.short_name, suite.tasks) for expert in file.sources.experts]
    tasks = tuple(dict.fromkeys(task for own in of_experts for task in own))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(checkpoint), trust_remote_code=False)
    config = AutoConfig.from_pretrained(checkpoint.home, trust_remote_code=False)
    prompts = PromptSource.of(suite, tasks, settings).prompts(
        tasks,
        asked.documents,
        tokenizer,
        context=context_length(config, tokenizer),
        most_tokens=asked.tokens,
        cache=cache_folder() / "requests",
    )
    samples = {
        task: [Sample(tokens=answered.tokens, answer=answered.answer) for answered in own]
        for task, own in prompts.items()
    }
    calibration = Calibration.of(samples, of_experts)
    keep(calibration)
    return calibration


def undecided(file: SearchFile, tasks: Collection[str]) -> list[str]:
    """Return a warning if experts see the prompts of all ``tasks`` because nobody said which are theirs."""
    if len(tasks) < 2 or not needs_calibration(file.space):
        return []
    named = file.calibration.tasks if file.calibration else {}
    others = [expert.short_name for expert in file.sources.experts if expert.short_name not in named]
    if not others:
        return []
    return [
        f"calibration.tasks says nothing of {', '.join(others)}: operators that need statistics will run them on the "
        "prompts of all tasks, which can cost most of what an expert knows; name each expert's own "
        "(docs/operators.md has numbers), or all of them if that is meant"
    ]


def restore(plan: dict[str, Any]) -> None:
    """Put the prompts of a recorded plan, if it has any, where exports look for them.

    Raises:
        NotEnoughRoom: they cannot be kept.
    """
    if CALIBRATION in plan:
        from evomerge.merging.calibrations import keep

        keep(Calibration.model_validate(plan[CALIBRATION]))
