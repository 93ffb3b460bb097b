"""From a search file to everything that a search stands on, checked before the first second is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.evaluation import Documents
from evaluators.objective import EvaluationSettings
from evaluators.objective_kinds import Forgetting
from evaluators.splits import Splits
from evomerge import plugins
from evomerge.calibration import CALIBRATION, make_calibration
from evomerge.config import SearchFile, differences, fixed_part
from evomerge.errors import BadSearch, BadSource
from evomerge.examples import example_merges, example_recipes
from evomerge.foreign import a_row
from evomerge.inspection import INSPECTION, Inspection
from evomerge.merging import sources as source_files
from evomerge.merging.placement import Devices
from evomerge.merging.preparations import preparation_of
from evomerge.merging.sources import TOKENIZERS
from evomerge.minibatches import points_between_middles, refuse_few_documents
from evomerge.optimizers.choice import Choice, choose
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AutoSettings
from evomerge.plugins import PLUGINS
from evomerge.preferences import aim_of
from evomerge.records import check_plan
from evomerge.shares import by_tenths, shares
from evomerge.worker import WorkerSpec
from search_spaces.calibration import Calibration
from search_spaces.courses import Moments
from search_spaces.mosaic_space import MosaicSpace, MosaicSpaceSettings
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.path_space import PathSpace, fixed_merges
from search_spaces.recipe import Merge, Source
from search_spaces.spaces import Space
from search_spaces.vocabulary import Vocabulary, vocabulary_keys

if TYPE_CHECKING:
    from evomerge.merging.checkpoint import Checkpoint

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
MERGES = "merges"  # key of a recorded plan: merges that paths lead through and that are not searched
MOMENTS = "moments"  # key of a recorded plan: what the scales of paths start from
CHOSEN_OPTIMIZER = "optimizer"  # key of a recorded plan; like `INSPECTION` not part of what must stay the same
Say = Callable[[str], None]
Progress = Callable[[str, float], None]  # what, and the share of it that is done


@dataclass(frozen=True)
class Problem:
    """A search file with its sources pinned, its space laid out and its documents chosen.

    Attributes:
        folders: one per source, the base first.
        model_bytes: size of one merged model.
        suite_digest: SHA-256 over all that defines the scores.
        inspection: how far the experts are from the base.
        copies: models that a worker holds in memory of its own.
        calibration: prompts of operators that need statistics.
        tokenizers: digests of those that scores depend on: the base's; all with `sources.vocabulary`.
        vocabulary: that the sources are brought to; none where theirs are equal.
        vocabulary_notes: what that does, for people.
    """

    file: SearchFile
    space: Space
    folders: tuple[Path, ...]
    model_bytes: int
    splits: Splits
    suite_digest: str
    inspection: Inspection
    copies: int = 1
    calibration: Calibration | None = None
    tokenizers: tuple[str | None, ...] = ()
    vocabulary: Vocabulary | None = None
    vocabulary_notes: tuple[str, ...] = ()

    @cached_property
    def objective_names(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""
        return tuple(objective.name for objective in self.file.objectives)

    @property
    def longest_seconds(self) -> float:
        """How long a worker may take for a candidate: also for the base where it is measured with a worker's first."""
        with_base = any(isinstance(objective, Forgetting) for objective in self.file.objectives)
        return self.file.evaluation.timeout_seconds * (2.0 if with_base else 1.0)

    def documents(self, split: str) -> Documents:
        """The documents of ``split``: search, validation or test."""
        return {"search": self.splits.search, "validation": self.splits.validation, "test": self.splits.test}[split]

    def choice(self) -> Choice | None:
        """The algorithm that `optimizer: {kind: auto}` stands for now; None if the file names one itself.

        A search keeps the choice it began with, which its record holds: the budget may grow."""
        if self.file.optimizer.kind != "auto":
            return None
        return choose(self.setting())

    def setting(self) -> Setting:
        """What an optimizer is told of the search when it is made."""
        weights = np.array([objective.weight for objective in self.file.objectives])
        minibatches = self.file.evaluation.minibatches
        return Setting(
            self.space.genes,
            weights,
            evaluations=self.file.budget.evaluations,
            aim=aim_of(self.file.objectives, self.file.preference),
            mosaics=self.space.algebra if isinstance(self.space, MosaicSpace) else None,
            centres=points_between_middles(minibatches) if minibatches else 0,
            noisy=minibatches is not None and minibatches.measure == "metric",
        )

    def plan(self) -> dict[str, Any]:
        """What the file was resolved to, as JSON types: a search continues only while it stays the same."""
        fixed = fixed_merges(self.space) if isinstance(self.space, PathSpace) else []
        moments = self.space.moments if isinstance(self.space, PathSpace) else None
        plugged = plugins.described(self.file.model_dump(mode="json"))
        return {
            **({PLUGINS: plugged} if plugged else {}),
            **({MERGES: [body.model_dump(mode="json") for body in fixed]} if fixed else {}),
            **({CALIBRATION: self.calibration.model_dump(mode="json")} if self.calibration else {}),
            **({TOKENIZERS: list(self.tokenizers)} if self.tokenizers else {}),
            **({MOMENTS: [list(row) for row in moments]} if moments else {}),
            "sources": [source.model_dump(mode="json") for source in self.space.sources],
            "expert_names": list(self.space.expert_names),
            "layers": self.space.layers,
            "genes": list(self.space.genes.names),
            "suite": self.suite_digest,
            "documents": {
                split: {task: list(ids) for task, ids in self.documents(split).ids.items()}
                for split in ("search", "validation", "test")
            },
        }

    def worker_spec(self, *, device: Devices, threads: int) -> WorkerSpec:
        """What a worker needs to make itself."""
        return WorkerSpec(
            folders=tuple(map(str, self.folders)),
            sources=self.space.sources,
            tokenizer=self.space.tokenizer if isinstance(self.space, PathSpace) else 0,
            dtype=self.file.sources.dtype,
            objectives=self.file.objectives,
            evaluation=evaluation_of(self.file),
            device=device,
            threads=threads,
            calibration=self.calibration,
            vocabulary=self.vocabulary,
            examples=tuple(dict.fromkeys(recipe.to_json() for recipe in example_recipes(self.space))),
        )


def prepare(
    file: SearchFile,
    *,
    say: Say = lambda _: None,
    progress: Progress | None = None,
    first: Merge | None = None,
    moments: Moments | None = None,
) -> Problem:
    """Resolve, fingerprint and check everything that ``file`` names.

    ``say`` hears what is being done, ``progress`` what part of it is done where that takes long (else ``say`` does).
    ``first`` is the merge that the first step of a hybrid search found; the start of its space stands in for it.
    ``moments`` are those that the search began with, if scales start from them; else they are measured.

    Raises:
        UserMistake, TaskError, ValueError: what is wrong, on one line.
    """
    from evaluators.raceable import refuse_unraceable
    from evaluators.smooth import stand_ins
    from evaluators.splits import make_splits
    from evaluators.tasks import TaskSuite
    from evomerge.merging import compatibility
    from evomerge.merging.inspection import cached_inspection
    from evomerge.merging.observation import default_device, ensure
    from evomerge.merging.opening import open_sources
    from evomerge.path_spaces import make_path_space, model_moments

    models = (file.sources.base, *file.sources.experts)
    say("looking at the models")
    folders = tuple(source_files.resolve(source.path, source.revision) for source in models)
    checkpoints, vocabulary, notes = _in_one_vocabulary(file, open_sources(folders, base=0))
    compatibility.check(checkpoints, compatibility.mergeable_names(checkpoints[0]))
    say("fingerprinting the models")
    pinned = tuple(
        Source(
            path=source.path,
            revision=source.revision,
            digest=source_files.fingerprint(folder),
            preparation=preparation_of(folder),
        )
        for source, folder in zip(models, folders, strict=True)
    )
    with_tokenizer = folders[:1] if file.sources.vocabulary is None else folders
    inspection = cached_inspection(
        checkpoints,
        [source.short_name for source in file.sources.experts],
        digests=[*(source.identity for source in pinned), *vocabulary_keys(vocabulary)],
        progress=shares(progress or by_tenths(say), "comparing the experts with the base"),
    )
    say("building the tasks")
    settings = evaluation_of(file)
    suite = TaskSuite.load(file.objectives, settings)
    if settings.racing:
        refuse_unraceable(suite, file.objectives)
    splits = make_splits(suite, settings)
    calibration = make_calibration(file, suite, settings, checkpoints[0])
    prompts = calibration.digest if calibration else None
    if isinstance(file.space, MosaicSpaceSettings):
        from evomerge.mosaics import mosaic_space

        space: Space = mosaic_space(file, file.space, pinned, checkpoints, say, vocabulary=vocabulary)
    elif isinstance(file.space, ParameterSpaceSettings):
        layers = checkpoints[0].layers
        space = make_space(file, pinned, layers=layers, vocabulary=vocabulary, prompts=prompts)
        check_adapters(space, folders)
    else:
        space = make_path_space(
            file, file.space, pinned, checkpoints, vocabulary=vocabulary, first=first, prompts=prompts
        )
    if calibration is not None:
        told = shares(progress or by_tenths(say), "running the experts on calibration prompts")
        for recipe in example_merges(space):
            ensure(recipe, checkpoints, device=default_device(file.cluster.gpus_per_worker), progress=told)
    if isinstance(space, PathSpace) and space.settings.scale_start is not None:
        if moments is None:
            say("measuring the residual streams of the models")
            moments = model_moments(space, checkpoints, suite, splits)
        space = replace(space, moments=moments)
    if minibatches := settings.minibatches:
        refuse_unraceable(suite, file.objectives, key="minibatches")
        refuse_few_documents(splits.search, minibatches.count)
        if minibatches.measure != "metric":
            TaskSuite.load(tuple(stand_ins(file.metrics, minibatches).values()), settings)  # refuses what has none
    problem = Problem(
        file=file,
        space=space,
        folders=folders,
        model_bytes=merged_bytes(checkpoints[0], file.sources.dtype),
        splits=splits,
        suite_digest=suite.digest,
        inspection=inspection,
        copies=_copies(space, checkpoints),
        calibration=calibration,
        tokenizers=tuple(map(source_files.tokenizer_fingerprint, with_tokenizer)),
        vocabulary=vocabulary,
        vocabulary_notes=notes,
    )
    check_optimizer(problem)
    return problem


def _in_one_vocabulary(
    file: SearchFile, sources: list[Checkpoint]
) -> tuple[list[Checkpoint], Vocabulary | None, tuple[str, ...]]:
    """Return the sources as `sources.vocabulary` aligns them, the policy if there is anything to align, and notes."""
    from evomerge.merging.vocabulary import aligned, plan_vocabulary

    policy = file.sources.vocabulary_policy()
    if policy is None:
        return sources, None, ()
    plan = plan_vocabulary(sources, policy, 0)
    return aligned(sources, plan, 0), policy if plan.needed(0) else None, tuple(plan.sentences())


def check_optimizer(problem: Problem) -> None:
    """Refuse an optimizer that cannot search this space within the budget.

    Raises:
        BadSearch: why, and what can.
    """
    settings = problem.file.optimizer
    if isinstance(settings, AutoSettings):
        return  # chosen to suit
    try:
        make_optimizer(settings, problem.setting())
    except ValueError as error:
        raise BadSearch(str(error)) from None


def evaluation_of(file: SearchFile) -> EvaluationSettings:
    """Return the evaluation settings of ``file``; sampled answers follow the search's seed unless they have one."""
    if file.evaluation.sampling_seed is not None:
        return file.evaluation
    return file.evaluation.model_copy(update={"sampling_seed": file.optimizer.seed})


def _copies(space: Space, checkpoints: Sequence[Checkpoint]) -> int:
    if not isinstance(space, PathSpace):
        return 1
    from evomerge.path_spaces import copies

    return copies(space, checkpoints)


def merged_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Return the size of a model with the tensors of ``checkpoint`` in ``dtype``, in bytes."""
    elements = sum(math.prod(checkpoint.info(name).shape) for name in checkpoint.names)
    return elements * BYTES_PER_ELEMENT[dtype]


def check_adapters(space: ParameterSpace, folders: Sequence[Path]) -> None:
    """Refuse models where the operator merges the factors of adapters.

    Raises:
        BadSearch: an expert is no adapter.
    """
    from evomerge.merging.adapter import is_adapter

    whole = [folder for folder in folders[1:] if not is_adapter(folder)]
    if space.operator.needs_adapters and whole:
        raise BadSearch(
            f"space.operator {space.settings.operator} merges LoRA adapters, and {whole[0]} is a whole model; use "
            "ties, knots or another operator on task vectors"
        )


def make_space(
    file: SearchFile,
    pinned: tuple[Source, ...],
    *,
    layers: int,
    vocabulary: Vocabulary | None = None,
    prompts: str | None = None,
) -> ParameterSpace:
    """Return the parameter space of ``file`` over the pinned sources; ``prompts`` is the digest of its calibration.

    Raises:
        BadSearch: the space does not fit the models.
    """
    assert isinstance(file.space, ParameterSpaceSettings)
    try:
        return ParameterSpace(
            settings=file.space,
            sources=pinned,
            expert_names=tuple(source.short_name for source in file.sources.experts),
            layers=layers,
            dtype=file.sources.dtype,
            mask_seed=file.optimizer.seed,
            prompts=prompts,
            vocabulary=vocabulary,
        )
    except ValueError as error:
        raise BadSearch(f"space: {error}") from None


def check_unchanged(problem: Problem, recorded_file: dict[str, Any], recorded_plan: dict[str, Any]) -> None:
    """Refuse to continue a search whose file, models, tasks or documents are not what they were.

    Raises:
        BadSource: a model's files have changed.
        BadSearch: anything else but budget, cluster, logging and storage has; the difference is shown. Or the plan
            was not written by evomerge.
    """
    with a_row():
        check_plan(recorded_plan)
    name = problem.file.name
    fixed = problem.file.fixed_part()
    recorded = fixed_part(recorded_file)
    changed = differences({key: recorded.get(key) for key in fixed}, fixed)
    if changed:
        raise BadSearch(
            f"search {name!r} exists and may change only its budget, cluster, logging and storage; "
            f"changed: {'; '.join(changed)}. Undo this, or give the search another name"
        )
    plan = problem.plan()
    recorded_plan = {key: value for key, value in recorded_plan.items() if key not in (CHOSEN_OPTIMIZER, INSPECTION)}
    for before, now in zip(recorded_plan["sources"], plan["sources"], strict=True):
        if before["digest"] != now["digest"]:
            raise BadSource(
                f"{now['path']}: the files have changed since search {name!r} began "
                f"(was {before['digest'][:12]}, is {now['digest'][:12]}); restore them, or start another search"
            )
    if TOKENIZERS not in recorded_plan:
        plan.pop(TOKENIZERS, None)
    for source, before, now in zip(
        plan["sources"], recorded_plan.get(TOKENIZERS, ()), plan.get(TOKENIZERS, ()), strict=False
    ):
        if before != now:
            raise BadSource(
                f"{source['path']}: the tokenizer's files have changed since search {name!r} began; restore them, or "
                "start another search"
            )
    if wrong := plugins.changed(recorded_plan.get(PLUGINS, ()), plan.get(PLUGINS, ())):
        raise BadSearch(f"search {name!r} began with {wrong}; install what it began with, or start another search")
    if recorded_plan != plan:
        changed = differences(recorded_plan, plan)
        places = ", ".join(line.partition(":")[0] for line in changed)
        raise BadSearch(f"search {name!r}: its tasks or documents have changed since it began ({places})")
