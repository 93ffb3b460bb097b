"""One training stage as a process: `python -m evomerge.foundry.stage STAGE FOLDER`.

Reads the settings and the finished earlier stages from FOLDER, writes FOLDER/STAGE by rename, and says how
far it is on standard output, one JSON object a line: `{"fraction": 0.5}`, or `{"error": "..."}` before an
exit status of 1. A process of its own keeps the thread count and the random state of whoever asked for the
experts untouched; when that process dies, the next line of output finds the pipe closed and this one ends
too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from evomerge.foundry.checkpoints import load_parameters, save_base, save_expert, save_parameters
from evomerge.foundry.errors import FoundryError
from evomerge.foundry.settings import SETTINGS, FoundrySettings
from evomerge.foundry.training import Report, Trained, train_base, train_clean, train_expert


def main(arguments: list[str]) -> int:
    """Runs one stage; returns the exit status."""
    name, folder = arguments[0], Path(arguments[1])
    settings = FoundrySettings.model_validate_json((folder / SETTINGS).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        run_stage(settings, name, folder, lambda fraction: _say({"fraction": round(fraction, 4)}))
    except FoundryError as error:
        _say({"error": str(error)})
        return 1
    return 0


def run_stage(settings: FoundrySettings, name: str, folder: Path, report: Report) -> None:
    """Trains the stage `name` (clean, base, or an expert) and leaves its checkpoint in `folder / name`."""
    part = folder / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    if name == "clean":
        save_parameters(part, train_clean(settings, report).parameters)
    elif name == "base":
        trained = train_base(settings, load_parameters(folder / "clean"), report)
        save_base(part, trained.parameters, settings.geometry, _card(settings, name, trained))
    else:
        expert = next(expert for expert in settings.experts if expert.name == name)
        trained = train_expert(settings, expert, load_parameters(folder / "base"), report)
        save_expert(part, trained.parameters, folder / "base", _card(settings, name, trained))
    for file in part.iterdir():
        # The rename below must not reach the disk before what it names does.
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    part.rename(folder / name)


def _card(settings: FoundrySettings, name: str, trained: Trained) -> dict[str, object]:
    return {
        "name": name,
        "foundry": settings.digest(),
        "seed": settings.seed,
        "steps": trained.steps,
        "held_out_accuracy": trained.accuracy,
    }


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
