"""Builds the experts once for given settings, and finds them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from evomerge.foundry.cache import CachePaths, fault, locked, stands_elsewhere, write_manifest
from evomerge.foundry.processes import run_stages
from evomerge.foundry.settings import SETTINGS, FoundrySettings
from evomerge.foundry.tasks import task_names, write_tasks, write_yaml

Progress = Callable[[str, float], None]
"""Called in the caller's thread with what is being done and the fraction of the whole build, in [0, 1]."""

_CLEAN_SHARE = 0.7
"""Of its cap of steps, what a clean model usually takes; only progress depends on it."""


@dataclass(frozen=True)
class Foundry:
    """A finished set of models and tasks on disk."""

    settings: FoundrySettings
    root: Path
    base: Path
    experts: Mapping[str, Path]
    """Name -> checkpoint folder, in the order of the settings."""
    tasks: Path
    """Folder for lm-eval's `TaskManager(include_path=...)`."""
    task_names: tuple[str, ...]
    """Every task in `tasks`: those that generate, then their multiple-choice variants."""
    objectives: tuple[str, ...]
    """The joint tasks: what a merge can do and no expert can."""

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Model -> `"<skill>_<language>"` -> share of held-out questions right when it was trained."""
        folders = {"base": self.base, **self.experts}
        return {
            name: json.loads((folder / "foundry.json").read_text(encoding="utf-8"))["held_out_accuracy"]
            for name, folder in folders.items()
        }


def build(
    settings: FoundrySettings | None = None,
    *,
    cache: Path,
    progress: Progress | None = None,
    processes: int = 2,
) -> Foundry:
    """Returns the foundry of `settings` (None: the default), training it first unless `cache` holds it whole.

    Finished stages of a build that was interrupted are taken up again. Several processes may call this at
    once: one trains, the others wait for it.

    Raises:
        FoundryError: a model did not reach its threshold, or a training process died.
        ValueError: `processes` is below 1.
    """
    settings = FoundrySettings() if settings is None else settings
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    told: Progress = progress or (lambda what, fraction: None)
    paths = CachePaths.of(cache, settings.digest())
    if fault(paths.root) is not None or stands_elsewhere(paths.root):
        with locked(paths.lock, lambda: told("waiting for another build", 0.0)):
            # Another process may have finished it while this one waited.
            if fault(paths.root) is not None:
                _train(settings, paths, told, processes)
            elif stands_elsewhere(paths.root):
                write_yaml(paths.root / "tasks", settings, location=paths.root / "tasks")
                write_manifest(paths.root, location=paths.root)
    told("ready", 1.0)
    return _found(settings, paths.root)


def _found(settings: FoundrySettings, root: Path) -> Foundry:
    return Foundry(
        settings=settings,
        root=root,
        base=root / "base",
        experts=MappingProxyType({expert.name: root / expert.name for expert in settings.experts}),
        tasks=root / "tasks",
        task_names=task_names(settings),
        objectives=tuple(task.name for task in settings.tasks if task.joint),
    )


def _train(settings: FoundrySettings, paths: CachePaths, told: Progress, processes: int) -> None:
    """Runs the missing stages in the work folder, then renames it; the caller holds the lock."""
    if paths.root.exists():
        shutil.rmtree(paths.root)
    paths.work.mkdir(parents=True, exist_ok=True)
    (paths.work / SETTINGS).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    weights = {"clean": settings.clean.steps * _CLEAN_SHARE, "base": float(settings.spoil.steps)}
    weights |= {expert.name: float(expert.stage.steps) for expert in settings.experts}
    done = {name: float((paths.work / name).is_dir()) for name in weights}

    def report(name: str, fraction: float) -> None:
        done[name] = max(done[name], fraction)
        busy = [stage for stage in weights if 0.0 < done[stage] < 1.0] or [name]
        # The last percent is writing tasks and the manifest.
        whole = sum(weights[stage] * done[stage] for stage in weights) / sum(weights.values())
        told(f"training {', '.join(busy)}", 0.99 * whole)

    for names in (["clean"], ["base"], [expert.name for expert in settings.experts]):
        missing = [name for name in names if not (paths.work / name).is_dir()]
        if names == ["clean"] and (paths.work / "base").is_dir():
            # A build that was stopped at the very end has removed it already.
            done["clean"], missing = 1.0, []
        run_stages(missing, paths.work, processes=processes, report=report)
    told("writing tasks", 0.99)
    shutil.rmtree(paths.work / "tasks", ignore_errors=True)
    write_tasks(paths.work / "tasks", settings, location=paths.root / "tasks")
    # Only a means to the base: nobody should merge with it.
    shutil.rmtree(paths.work / "clean", ignore_errors=True)
    write_manifest(paths.work, location=paths.root)
    paths.work.rename(paths.root)
