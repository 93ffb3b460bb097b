"""A text file as a task: paragraphs packed into documents, each scored as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from evaluators.errors import TaskError, one_line
from evaluators.library_state import calling_lm_eval, loading_data_sets
from evaluators.loaded import LoadedTask
from evaluators.objective_kinds import Perplexity

_SPLIT = "test"


def load_text(objectives: tuple[Perplexity, ...]) -> LoadedTask:
    """Return the task of one file, which all of ``objectives`` measure.

    Raises:
        TaskError: the file cannot be read as UTF-8 or holds no text; two files have the same name; or the objectives
            cut one file in different ways.
    """
    first = objectives[0]
    for other in objectives[1:]:
        if other.file != first.file:
            raise TaskError(f"two text files are called {first.title}: {first.file} and {other.file}; rename one")
        if other.window != first.window:
            raise TaskError(f"objectives on {first.title} differ in window ({first.window}, {other.window}); use one")
    documents = [{"text": text} for text in split_text(_read(first.file), window=first.window)]
    if not documents:
        raise TaskError(f"file {first.file} holds no text")
    with calling_lm_eval(trusted=False), loading_data_sets():
        task = _task(first.title, documents)
    return LoadedTask(first.title, task, False, tuple(documents), (), objectives)


def split_text(text: str, *, window: int) -> list[str]:
    """Return documents of at most ``window`` characters: whole paragraphs while they fit, else parts of one.

    Paragraphs are parted by blank lines. One that is too long is cut after a line, else after a space, else anywhere.
    """
    documents: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _pieces(paragraph.strip(), window):
            if documents and len(documents[-1]) + 2 + len(piece) <= window:
                documents[-1] += "\n\n" + piece
            else:
                documents.append(piece)
    return documents


def _pieces(paragraph: str, window: int) -> Iterator[str]:
    while len(paragraph) > window:
        cut = next((at for mark in ("\n", " ") if (at := paragraph.rfind(mark, 0, window + 1)) > 0), window)
        yield paragraph[:cut].rstrip()
        paragraph = paragraph[cut:].lstrip()
    if paragraph:
        yield paragraph


def _read(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        text = one_line(error)
        raise TaskError(f"objectives: file {file} cannot be read as UTF-8 text: {text}") from None


def _task(name: str, documents: list[dict[str, str]]) -> Any:
    task = ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda: datasets.DatasetDict({_SPLIT: datasets.Dataset.from_list(documents)}),
            "test_split": _SPLIT,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "num_fewshot": 0,
        }
    )
    task.config.custom_dataset = None  # the documents are hashed; where they came from says nothing about scores
    return task
