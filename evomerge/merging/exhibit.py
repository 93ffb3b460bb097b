"""One model in memory that shows one source after another, or a merge of them, to be run on calibration prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import BadRecipe, NotEnoughRoom
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.placement import Devices
from evomerge.merging.resident import ResidentModel, free_bytes
from search_spaces.calibration import Calibration, Sample
from search_spaces.operators import Operator, TaskArithmetic
from search_spaces.recipe import MOST_LAYERS, Block, Blocks, Recipe, alone


class Exhibit:
    """The model of ``recipe``'s sources, in bfloat16 if the files of the base are, else in float32.

    Attributes:
        recipe: whose sources are shown.
        checkpoints: its sources, in order.
    """

    def __init__(self, recipe: Recipe, checkpoints: Sequence[Checkpoint], *, device: Devices) -> None:
        """Build it on ``device``, or spread over several.

        Raises:
            BadSource: transformers cannot build the model.
            NotEnoughRoom: it does not fit into memory.
        """
        first = checkpoints[0]
        kept = all(first.info(name).dtype is torch.bfloat16 for name in first.names)
        self.recipe = recipe.model_copy(update={"dtype": "bfloat16" if kept else "float32"})
        self.checkpoints = tuple(checkpoints)
        self._resident = ResidentModel(checkpoints, tokenizer=recipe.tokenizer, dtype=self.recipe.dtype, device=device)
        self.model: Any = self._resident.model
        self._devices = [torch.device(name) for name in ([device] if isinstance(device, str) else device)]
        self.device = self._devices[0]  # of inputs and outputs

    @property
    def tensors(self) -> Any:
        """The weights by their names in the checkpoints; writing to them changes the model."""
        return self._resident.tensors

    @property
    def bytes(self) -> int:
        """How much memory the weights take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def names(self) -> dict[int, str]:
        """Names in the checkpoints by the address of the weights."""
        return {tensor.data_ptr(): name for name, tensor in self.tensors.items()}

    def parts(self, parameter: Tensor) -> list[tuple[str, slice]]:
        """Return the tensors that a parameter holds, one after another in its memory, and where.

        It is one, unless transformers stacks the matrices of experts.
        """
        start, stop = parameter.data_ptr(), parameter.data_ptr() + parameter.numel() * parameter.element_size()
        found = []
        for address, name in self.names.items():
            if start <= address < stop:
                first = (address - start) // parameter.element_size()
                found.append((name, slice(first, first + self.tensors[name].numel())))
        return found

    def show(self, source: int) -> None:
        """Make the model source number ``source``."""
        self._resident.apply(self.recipe.model_copy(update={"body": alone(source, len(self.checkpoints))}))

    def show_average(self) -> None:
        """Make the model the average of the experts."""
        count = len(self.recipe.experts)
        operator: Operator = TaskArithmetic(weights=(1.0 / count,) * count)
        body = Blocks(blocks=(Block(layers=(0, MOST_LAYERS), operator=operator),))
        self._resident.apply(self.recipe.model_copy(update={"body": body}))

    def tokens(self, sample: Sample) -> Tensor:
        """Return the tokens of ``sample``, int64 (1, n)."""
        return torch.tensor([sample.tokens], device=self.device)

    def check_vocabulary(self, calibration: Calibration) -> None:
        """Refuse prompts with tokens that the model does not have.

        Raises:
            BadRecipe: there are such.
        """
        size = self.model.get_input_embeddings().weight.shape[0]
        largest = max(max(sample.tokens) for sample in calibration.samples)
        if largest >= size:
            raise BadRecipe(
                f"calibration prompts {calibration.digest[:16]} hold token {largest}, and the vocabulary has "
                f"{size}: they were made for other models"
            )

    def room(self) -> int:
        """Return the bytes that are left for statistics, which lie with the weights that they are of.

        Of several devices, which have about equal shares of the weights, the fullest decides.
        """
        return len(self._devices) * min(map(free_bytes, self._devices))

    def reserve(self, needed: int, what: str) -> None:
        """Refuse what does not fit.

        Raises:
            NotEnoughRoom: ``needed`` bytes are not left.
        """
        free = self.room()
        if needed > free:
            raise NotEnoughRoom(
                f"{what} need {needed / 2**30:.2f} GiB on {self.device} beside the model, {free / 2**30:.2f} GiB are "
                "available"
            )
