"""lm-eval tasks on held-out questions: `<name>` generates the answer, `<name>_mc` chooses among answers.

Every task is one JSONL file of documents and two YAML files that read it. lm-eval hands `data_files` to
`datasets`, which resolves a relative path against the working directory of the process, not against the
YAML, so the YAML files name their documents by absolute path: to move a tasks folder, write it again with
`write_tasks` (the documents come out the same).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import numpy as np

from evomerge.foundry.language import (
    ANSWER_LENGTH,
    EOS,
    LANGUAGES,
    IntArray,
    prompt,
    questions,
    solve,
    words,
)
from evomerge.foundry.settings import FoundrySettings, Language, Skill, TaskSettings

MULTIPLE_CHOICE = "_mc"
"""Suffix of the multiple-choice variant of a task."""


class Document(TypedDict):
    """One line of a JSONL file."""

    prompt: str
    answer: str
    choices: list[str]
    gold: int


def documents(settings: FoundrySettings, task: TaskSettings) -> list[Document]:
    """The distinct documents of one task, all held out from training, in a seeded random order.

    Raises:
        ValueError: there are fewer held-out questions than documents asked for.
    """
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, *task.name.encode()]))
    made: list[Document] = []
    for index, skill in enumerate(task.skills):
        # Shares that differ by one at most and sum to the number asked for.
        count = (settings.documents + index) // len(task.skills)
        pool = questions(skill, settings.held_out_share, held_out=True)
        if len(pool) < count:
            raise ValueError(
                f"task {task.name} needs {count} held-out questions of {skill}, there are {len(pool)}: lower "
                f"documents or raise held_out_share"
            )
        chosen = pool[rng.permutation(len(pool))[:count]]
        made += [_document(rng, skill, digits, task.language, settings.choices) for digits in chosen]
    return [made[position] for position in rng.permutation(len(made))]


def write_tasks(folder: Path, settings: FoundrySettings, *, location: Path | None = None) -> None:
    """Writes documents, YAML files and a README into `folder`, which is made if it does not exist.

    `location` is where the folder will finally stand, if not where it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in settings.tasks:
        lines = [json.dumps(document, ensure_ascii=False) for document in documents(settings, task)]
        (folder / f"{task.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_yaml(folder, settings, location=location or folder)
    (folder / "README.md").write_text(_readme(settings), encoding="utf-8")


def write_yaml(folder: Path, settings: FoundrySettings, *, location: Path) -> None:
    """Writes the YAML files only, naming documents under `location`."""
    for task in settings.tasks:
        file = (location / f"{task.name}.jsonl").absolute()
        for name, text in _yaml(task, file).items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def task_names(settings: FoundrySettings) -> tuple[str, ...]:
    """Names of all lm-eval tasks that `write_tasks` defines, multiple-choice variants last."""
    names = tuple(task.name for task in settings.tasks)
    return names + tuple(name + MULTIPLE_CHOICE for name in names)


def _document(rng: np.random.Generator, skill: Skill, digits: IntArray, language: Language, choices: int) -> Document:
    answer = solve(skill, digits[None])[0]
    right = words(answer, language)
    other: Language = LANGUAGES[1 - LANGUAGES.index(language)]
    # The two mistakes that the experts make: the right value in the wrong language, and the lazy copy.
    wrong = [words(answer, other), words(digits[: len(answer)], language)]
    offered = [right]
    while len(offered) < choices:
        candidate = wrong.pop(0) if wrong else words(_near_miss(rng, answer), language)
        if candidate not in offered:
            offered.append(candidate)
    order = rng.permutation(choices)
    shuffled = [offered[position] for position in order]
    return Document(prompt=prompt(skill, digits, language), answer=right, choices=shuffled, gold=shuffled.index(right))


def _near_miss(rng: np.random.Generator, answer: IntArray) -> IntArray:
    """`answer` with one digit changed."""
    missed = answer.copy()
    position = rng.integers(len(answer))
    missed[position] = (missed[position] + rng.integers(1, 10)) % 10
    return missed


def _yaml(task: TaskSettings, file: Path) -> dict[str, str]:
    """YAML text by task name. JSON strings are YAML strings, whatever the path contains."""
    tags = ["foundry", "foundry_joint"] if task.joint else ["foundry"]
    head = (
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(file), ensure_ascii=False)}\n"
        "test_split: test\nnum_fewshot: 0\n"
        'doc_to_text: "{{prompt}}"\ntarget_delimiter: " "\n'
    )
    longest = max(ANSWER_LENGTH[skill] for skill in task.skills)
    generate = (
        f"task: {task.name}\ntag: {json.dumps(tags)}\n{head}"
        'doc_to_target: "{{answer}}"\n'
        "output_type: generate_until\n"
        "generation_kwargs:\n"
        f'  until: ["{EOS}"]\n  do_sample: false\n  max_gen_toks: {longest + 1}\n'
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
        "metadata:\n  version: 1.0\n"
    )
    choose = (
        f"task: {task.name}{MULTIPLE_CHOICE}\n"
        f"tag: {json.dumps([tag + MULTIPLE_CHOICE for tag in tags])}\n{head}"
        'doc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "output_type: multiple_choice\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
        "metadata:\n  version: 1.0\n"
    )
    return {task.name: generate, task.name + MULTIPLE_CHOICE: choose}


def _readme(settings: FoundrySettings) -> str:
    joint = {True: "yes", False: "no"}
    rows = "\n".join(
        f"| `{task.name}` | {', '.join(task.skills)} | {task.language.upper()} | {joint[task.joint]} |"
        for task in settings.tasks
    )
    return f"""# Foundry tasks

Written by `evomerge.foundry`; {settings.documents:,} documents a task, none of them ever trained on.
`<name>` generates the whole answer (`exact_match`), `<name>{MULTIPLE_CHOICE}` chooses it among
{settings.choices} (`acc`).
A joint task asks for a skill in a language in which no expert was trained for it.

| task | skills | language | joint |
|---|---|---|---|
{rows}

The YAML files name the documents by absolute path. To use the tasks elsewhere, write them there with
`evomerge.foundry.write_tasks(folder, settings)` instead of copying the folder.
"""
