"""The search file: one section a noun, unknown keys refused with the known ones listed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from evaluators.objective import EvaluationSettings, Objective
from evaluators.objective_kinds import AnyObjective, Distance
from evomerge.errors import BadSearch
from evomerge.explain import explain
from evomerge.foreign import parse_yaml
from evomerge.loggers.settings import LoggerSettings
from evomerge.optimizers.settings import BREEDERS, CmaEsSettings, OptimizerSettings
from evomerge.preferences import PreferenceSettings, aim_of
from search_spaces.calibration import CalibrationSettings
from search_spaces.canonical import Frozen
from search_spaces.courses import CourseSettings
from search_spaces.parameter_space import ParameterSpaceSettings
from search_spaces.recipe import Dtype
from search_spaces.spaces import SpaceSettings, needs_calibration
from search_spaces.vocabulary import Vocabulary

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
CHANGEABLE = ("budget", "cluster", "logging", "storage")  # sections that may change between two runs of one search


class SourceSettings(Frozen):
    """One model: a folder (relative to the search file) or a Hub id, written as text or as a mapping."""

    path: str = Field(min_length=1)
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hub id")
    name: str | None = Field(default=None, description="short name in reports; the last part of the path by default")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("path")
    @classmethod
    def _is_no_endpoint(cls, path: str) -> str:
        if path.startswith(("http://", "https://")):
            raise ValueError(
                "an endpoint has no weights to merge; give a folder or a Hub id "
                "(`evomerge evaluate --endpoint` measures a model behind an API)"
            )
        return path

    @property
    def short_name(self) -> str:
        """The name that reports and genes use."""
        return self.name or self.path.rstrip("/").rpartition("/")[2]


class TokenSettings(Frozen):
    """The embedding of one token."""

    source: str = Field(description="base, the name of an expert, or zero")
    token: str | None = Field(default=None, description="another token of that source")
    token_id: int | None = Field(default=None, ge=0, description="a row of that source's embeddings")
    force: bool = Field(default=False, description="in all sources, those that have the token included")


class VocabularySettings(Frozen):
    """The tokens of merged models whose sources have different ones, written as text or as a mapping."""

    source: str = Field(default="union", description="union, base, or the name of an expert")
    tokens: dict[str, TokenSettings] = {}
    pad_to_multiple_of: int | None = Field(default=None, ge=1, description="rows")
    chat_template: str | None = Field(default=None, description="Jinja text; the tokenizer's own by default")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class SourcesSettings(Frozen):
    """The `sources` section."""

    base: SourceSettings
    experts: tuple[SourceSettings, ...] = Field(min_length=1)
    dtype: Dtype = "bfloat16"
    vocabulary: VocabularySettings | None = Field(
        default=None, description="tokens of the merged model where the sources' differ; they must not by default"
    )

    @model_validator(mode="after")
    def _vocabulary_is_known(self) -> SourcesSettings:
        self.vocabulary_policy()
        return self

    def vocabulary_policy(self) -> Vocabulary | None:
        """Return `vocabulary` with sources as positions, the base first.

        Raises:
            ValueError: a source is not known.
        """
        if self.vocabulary is None:
            return None
        names = ("base", *(expert.short_name for expert in self.experts))

        def position(name: str, word: str) -> Any:
            if name not in (word, *names):
                known = ", ".join((word, *names))
                raise ValueError(f"vocabulary: {name!r} is not known; expected one of {known}")
            return word if name == word else names.index(name)

        value = self.vocabulary.model_dump()
        value["source"] = position(value["source"], "union")
        for row in value["tokens"].values():
            row["source"] = position(row["source"], "zero")
        return Vocabulary.model_validate(value)

    @field_validator("experts")
    @classmethod
    def _names_differ(cls, experts: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        names = [expert.short_name for expert in experts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two experts are called {', '.join(twice)}; give each a name of its own ({{path, name}})")
        return experts


class BudgetSettings(Frozen):
    """The `budget` section. It counts new evaluations on search documents, seeds and failures included."""

    evaluations: int = Field(default=1000, ge=1)
    hours: float | None = Field(default=None, gt=0.0, description="wall time of the search, over all its runs")
    documents: int | None = Field(default=None, ge=1, description="of new evaluations; the last may exceed it")
    plateau: int | None = Field(default=None, ge=1, description="stop after so many without a better joint score")
    plateau_tolerance: float = Field(default=0.0, ge=0.0, description="better by no more than this is not better")
    stall: int | None = Field(default=None, ge=1, description="stop after so many without growth of the hypervolume")
    stall_growth: float = Field(default=0.001, ge=0.0, description="growth by no more than this share is none")
    failures: float = Field(default=0.5, gt=0.0, le=1.0, description="stop when this share of evaluations failed")
    finalists: int = Field(default=16, ge=1, description="most points of the front that validation measures")


class ClusterSettings(Frozen):
    """The `cluster` section."""

    backend: Literal["ray", "in_process"] = "ray"
    workers: int | Literal["auto"] = "auto"
    cpus_per_worker: float = Field(default=1.0, gt=0.0)
    gpus_per_worker: float | None = Field(
        default=None, ge=0.0, description="1 where there are GPUs, else 0; several share the layers of one model"
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1.0 and not gpus.is_integer():
            raise ValueError(f"{gpus:g} GPUs: a part of one (0.5), or a whole number of them (2), expected")
        return gpus

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, workers: int | str) -> int | str:
        if isinstance(workers, int) and workers < 1:
            raise ValueError("must be auto or at least 1")
        return workers


class BaselineSettings(Frozen):
    """The `baselines` section: what the winner is compared with, besides base, experts and uniform average."""

    single_coefficient: int = Field(default=20, ge=0, description="grid of single-coefficient task arithmetic; 0: off")
    random_search: bool = Field(default=False, description="a random search with the same budget, under NAME.random")


class SearchFile(Frozen):
    """A whole search file."""

    name: str = Field(pattern=NAME_PATTERN)
    sources: SourcesSettings
    space: SpaceSettings = Field(default_factory=ParameterSpaceSettings)
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    preference: PreferenceSettings | None = Field(
        default=None, description="the one number that is maximised and chooses the winner; the weighted mean"
    )
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    optimizer: OptimizerSettings = Field(default_factory=CmaEsSettings)
    calibration: CalibrationSettings | None = Field(
        default=None, description="of operators that need statistics, which take its defaults where it is left out"
    )
    baselines: BaselineSettings = Field(default_factory=BaselineSettings)
    budget: BudgetSettings = Field(default_factory=BudgetSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    logging: tuple[LoggerSettings, ...] = Field(default=(), description="curves for tensorboard, wandb, mlflow")
    storage: str = "sqlite:///evomerge.db"

    @field_validator("objectives")
    @classmethod
    def _objectives_differ(cls, objectives: tuple[AnyObjective, ...]) -> tuple[AnyObjective, ...]:
        names = [objective.name for objective in objectives]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"given twice: {', '.join(twice)}")
        if not any(objective.documents_of for objective in objectives):
            raise ValueError("at least one objective must be measured on documents; distance alone is best at the base")
        return objectives

    @model_validator(mode="after")
    def _optimizer_can_search_mosaics(self) -> SearchFile:
        if self.space.kind == "mosaic":
            breeders = " or ".join(BREEDERS)
            if self.optimizer.kind not in BREEDERS:
                raise ValueError(f"optimizer.kind: {self.optimizer.kind} cannot search mosaics; use {breeders}")
            if self.baselines.random_search:
                raise ValueError("baselines.random_search: mosaics cannot be drawn evenly; leave it out")
        return self

    @model_validator(mode="after")
    def _calibration_is_used(self) -> SearchFile:
        if self.calibration is not None:
            names = [expert.short_name for expert in self.sources.experts]
            self.calibration.check(names, needed=needs_calibration(self.space))
        return self

    @model_validator(mode="after")
    def _paths_have_no_distance(self) -> SearchFile:
        paths = isinstance(self.space, CourseSettings)
        if paths and any(isinstance(objective, Distance) for objective in self.objectives):
            raise ValueError("objectives: the distance from the base compares all tensors, and a path has others")
        return self

    @model_validator(mode="after")
    def _limits_name_objectives(self) -> SearchFile:
        try:
            aim_of(self.objectives, self.preference)
        except ValueError as error:
            raise ValueError(f"preference.limits: {error}") from None
        return self

    @property
    def metrics(self) -> tuple[Objective, ...]:
        """The objectives that are metrics of tasks."""
        return tuple(objective for objective in self.objectives if isinstance(objective, Objective))

    def fixed_part(self) -> dict[str, Any]:
        """Return everything that must not change between two runs of one search, as JSON types."""
        return fixed_part(self.model_dump(mode="json"))


def fixed_part(file: dict[str, Any]) -> dict[str, Any]:
    """Return what of a search file (JSON types) must not change between two runs of one search.

    Where task folders and texts lie may change, and does from job to job; that they are the same is checked by their
    digests.
    """
    fixed = {key: value for key, value in file.items() if key not in CHANGEABLE}
    if evaluation := fixed.get("evaluation"):
        fixed["evaluation"] = {k: v for k, v in evaluation.items() if k not in ("include_path", "trusted_paths")}
    if objectives := fixed.get("objectives"):
        fixed["objectives"] = [
            each | {"file": Path(each["file"]).name} if each.get("file") else each for each in objectives
        ]
    return fixed


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Return one line per leaf that differs between two nested mappings: ``a.b: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        place = f"{path}.{key}" if path else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, place)
        elif before != after:
            lines.append(f"{place}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def load(path: Path) -> SearchFile:
    """Read the search file at ``path``; folders in it are relative to the file.

    Raises:
        BadSearch: it cannot be read, is not YAML, or breaks the schema; every fault is named with its place.
    """
    return parse(read_mapping(path), folder=path.resolve().parent, where=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Raises:
        BadSearch: it cannot be read, is not YAML, or holds something else.
    """
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadSearch(f"{path}: no such file; `evomerge init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadSearch(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
        raise BadSearch(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise BadSearch(f"{path}: expected a mapping of sections (name, sources, objectives, ...), got {_kind(value)}")
    return value


def parse(value: dict[str, Any], *, folder: Path, where: str) -> SearchFile:
    """Validate a search file's mapping; folders in it become absolute, relative to ``folder``.

    Raises:
        BadSearch: it breaks the schema.
    """
    try:
        file = SearchFile.model_validate(value)
    except ValidationError as error:
        raise BadSearch(f"{where}: {explain(error, SearchFile)}") from None
    return _with_absolute_paths(file, folder)


def _with_absolute_paths(file: SearchFile, folder: Path) -> SearchFile:
    def source(value: SourceSettings) -> SourceSettings:
        return value.model_copy(update={"path": absolute_source(value.path, folder), "name": value.short_name})

    sources = file.sources.model_copy(
        update={"base": source(file.sources.base), "experts": tuple(map(source, file.sources.experts))}
    )
    evaluation = file.evaluation.model_copy(
        update={
            "include_path": absolute_folders(file.evaluation.include_path, folder),
            "trusted_paths": absolute_folders(file.evaluation.trusted_paths, folder),
        }
    )
    objectives = tuple(with_absolute_file(objective, folder) for objective in file.objectives)
    return file.model_copy(update={"sources": sources, "evaluation": evaluation, "objectives": objectives})


def with_absolute_file(objective: AnyObjective, folder: Path) -> AnyObjective:
    """Return ``objective`` with its text file, if it has one, as an absolute path."""
    file = getattr(objective, "file", None)
    if file is None:
        return objective
    return objective.model_copy(update={"file": absolute_folders((file,), folder)[0]})


def absolute_folders(paths: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Return the absolute paths of folders that are written relative to ``folder``."""
    return tuple(str((folder / Path(path).expanduser()).resolve()) for path in paths)


def absolute_source(path: str, folder: Path) -> str:
    """Return a folder's absolute path; what is no folder and does not look like one is a Hub id, or a URL."""
    if "://" in path:
        return path
    local = folder / Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    return str(Path(os.path.normpath(local))) if looks_local or local.is_dir() else path


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")
