"""A hybrid search as two: the best merge first, then the paths that begin in it (Akiba et al. 2025)."""

from __future__ import annotations

from evomerge.config import BaselineSettings, SearchFile
from evomerge.optimizers.settings import CmaEsSettings
from search_spaces.path_space import HybridSettings


def first_step(file: SearchFile) -> SearchFile:
    """Return the search of the merge that a hybrid search ``file`` begins with, under the name ``NAME.first``."""
    assert isinstance(file.space, HybridSettings)
    spent = max(1, round(file.space.share * file.budget.evaluations))
    return file.model_copy(
        update={
            "name": f"{file.name}.first",
            "space": file.space.merge,
            "optimizer": CmaEsSettings(seed=file.optimizer.seed),
            "budget": file.budget.model_copy(update={"evaluations": spent}),
            "baselines": BaselineSettings(single_coefficient=0, random_search=False),
        }
    )


def second_step(file: SearchFile) -> SearchFile:
    """Return a hybrid search ``file`` with the part of the budget that its paths get."""
    left = max(1, file.budget.evaluations - first_step(file).budget.evaluations)
    return file.model_copy(update={"budget": file.budget.model_copy(update={"evaluations": left})})
