"""Writing search files for people to edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from evaluators.objective import EvaluationSettings
from evomerge.config import absolute_folders, absolute_source, parse
from evomerge.errors import BadSearch

HEADER = """\
# Search file of evomerge. Check it: evomerge check {name}.yaml   Run it: evomerge run {name}.yaml
# Every key is described in docs/search-file.md; unknown keys are refused. Other objectives: docs/objectives.md
"""


def search_file(
    *, base: str | None, experts: Sequence[str], tasks: Sequence[str], include_path: Sequence[str], name: str
) -> str:
    """Return the text of a search file for these models and tasks.

    Raises:
        BadSearch: base, experts or tasks are missing.
        TaskError: a task is unknown or has no metric.
    """
    missing = [flag for flag, given in (("--base", base), ("--expert", experts), ("--task", tasks)) if not given]
    if missing:
        raise BadSearch(f"init needs {', '.join(missing)} (or --from-mergekit-evolve)")
    folders = absolute_folders(include_path, Path.cwd())
    value = {
        "name": name,
        "sources": {"base": base, "experts": list(experts), "dtype": "bfloat16"},
        "space": {
            "kind": "parameter",
            "operator": "task_arithmetic",
            "layer_groups": 4,
            "tensor_groups": ["self_attn", "mlp"],
            "weight": [0.0, 1.5],
        },
        "objectives": objectives(tasks, EvaluationSettings(include_path=folders)),
        "evaluation": {"search_documents": 200, "validation_documents": 200, "test_documents": 400}
        | ({"include_path": list(folders)} if folders else {}),
        "optimizer": {"kind": "cma_es", "seed": 0},
        "budget": {"evaluations": 500},
        "storage": "sqlite:///evomerge.db",
    }
    return _checked_text(value, name)


def objectives(tasks: Sequence[str], settings: EvaluationSettings) -> list[dict[str, str]]:
    """Return ``task`` or ``task/metric`` texts as objectives; without a metric the task's first one is taken.

    A tag, or a group that lm-eval has no score for, becomes an objective for each of its tasks.
    """
    from evaluators.tasks import default_objectives

    found = []
    for text in tasks:
        task, _, metric = text.partition("/")
        if metric:
            found.append({"task": task, "metric": metric})
        else:
            for each in default_objectives(task, settings):
                found.append({"task": each.task, "metric": each.metric, "direction": each.direction})
    return found


def from_mergekit_evolve(path: Path) -> str:
    """Return the text of a search file that does what a mergekit-evolve configuration does.

    Raises:
        BadSearch: something in it has no counterpart.
    """
    from evomerge.mergekit_evolve import convert

    value = convert(path, layers_of=lambda model: _layers(absolute_source(model, path.resolve().parent)))
    return _checked_text(value, str(value["name"]))


def _checked_text(value: dict[str, Any], name: str) -> str:
    parse(value, folder=Path.cwd(), where="search file")
    return HEADER.format(name=name) + yaml.safe_dump(value, sort_keys=False, width=110)


def _layers(path: str) -> int:
    from evomerge.merging.checkpoint import Checkpoint
    from evomerge.merging.sources import resolve

    return Checkpoint.open(resolve(path, None)).layers
