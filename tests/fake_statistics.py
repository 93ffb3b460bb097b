"""Statistics of experts that nobody can run: made up, and stored like real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.merging import calibrations
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.observation import statistical_operators
from evomerge.merging.ota import MOMENTS
from evomerge.merging.statistics import Need, Recorder, needs
from search_spaces.calibration import Calibration, Sample
from search_spaces.recipe import Recipe


def prompts_for(experts: int) -> Calibration:
    """One prompt for every expert."""
    return Calibration(samples=(Sample(tokens=(1, 2, 3), answer=2),), experts=((0,),) * experts)


def calibrate(recipe: Recipe) -> Recipe:
    """Return ``recipe``, now with the statistics that its operators need in the cache."""
    for place in recipe.experts if any(block.operator.kind == "ota" for block in recipe.body.blocks) else ():
        _leave_moments(Path(recipe.sources[place].path))
    for operator in statistical_operators(recipe):
        prompts = prompts_for(len(recipe.experts))
        calibrations.keep(prompts)
        for need in needs(operator, recipe, prompts):
            if not need.complete():
                _make(need, Checkpoint.open(recipe.sources[need.source].path))
    return recipe


def _make(need: Need, checkpoint: Checkpoint) -> None:
    random, recorder = torch.Generator().manual_seed(need.source), Recorder(need)
    for name in checkpoint.names:
        shape = checkpoint.info(name).shape
        if need.kind == "fisher":
            recorder.add([name], torch.rand(shape, generator=random).square())
        elif need.kind == "votes":
            recorder.add([name], torch.randint(-2, 3, shape, generator=random, dtype=torch.int16))
        elif len(shape) == 2 and "layers" in name:
            rows = torch.randn((3, shape[1]), generator=random)  # fewer tokens than inputs
            recorder.add([name], rows.T @ rows)
    recorder.finish(rms=1.0)


def _leave_moments(folder: Path) -> None:
    if not (folder / MOMENTS).is_file():
        checkpoint, random = Checkpoint.open(folder), torch.Generator().manual_seed(len(folder.name))
        moments = {n: torch.rand(checkpoint.info(n).shape, generator=random).square() for n in checkpoint.names}
        save_file(moments, folder / MOMENTS)
