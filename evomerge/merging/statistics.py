"""Statistics of models on calibration prompts: which ones an operator needs, and where they lie.

They are computed by `evomerge.merging.observation` and read here. Each lies in a folder of the cache named by what it
follows from: the models, the prompts and the kind. It is complete when its list of contents is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from evomerge.atomic import replacing
from evomerge.errors import BadRecipe
from evomerge.merging.calibrations import recall
from evomerge.merging.coefficients import base_of
from evomerge.merging.prepared import in_the_cache, mapped, write
from evomerge.merging.sources import cache_folder, content
from search_spaces.calibration import Calibration
from search_spaces.canonical import digest
from search_spaces.operators import Fisher, Rcp, RegMean, RegMeanPlus
from search_spaces.recipe import Recipe
from search_spaces.vocabulary import vocabulary_keys

_FORMAT = 1  # of what is stored: a change makes what lies in caches obsolete
_CONTENTS = "contents.json"
Statistical = Fisher | RegMean | RegMeanPlus | Rcp
Kind = Literal["fisher", "inputs", "merged_inputs", "votes"]


@dataclass(frozen=True)
class Need:
    """One statistic of one expert.

    Attributes:
        kind: `fisher` (squared gradients), `inputs` (Gram matrices of the inputs of linear layers), `merged_inputs`
            (the same, behind merged layers), `votes` (sums of votes per element).
        source: position of the expert among the sources.
        key: SHA-256 of all that the statistic follows from.
    """

    kind: Kind
    source: int
    key: str

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return cache_folder() / "statistics" / self.key

    def complete(self) -> bool:
        """Whether it has been computed."""
        return (self.folder / _CONTENTS).is_file()


def needs(operator: Statistical, recipe: Recipe, calibration: Calibration) -> list[Need]:
    """Return what ``operator`` needs, in the order in which it can be computed.

    Raises:
        BadRecipe: the prompts are those of other experts.
    """
    experts = recipe.experts
    if len(calibration.experts) != len(experts):
        raise BadRecipe(
            f"calibration prompts {calibration.digest[:16]} are for {len(calibration.experts)} experts, the recipe has "
            f"{len(experts)}"
        )
    base = content(recipe.sources[base_of(recipe)])
    vocabulary = vocabulary_keys(recipe.vocabulary)
    if vocabulary:  # which rows a model has in it follows from all the sources
        vocabulary = (*vocabulary, *map(content, recipe.sources))

    def need(kind: Kind, source: int, **more: object) -> Need:
        samples = calibration.expert_digests[experts.index(source)]
        models = [base, content(recipe.sources[source]), *vocabulary]
        what = {"format": _FORMAT, "kind": kind, "models": models, "samples": samples}
        return Need(kind, source, digest(what | more))

    if isinstance(operator, Fisher):
        return [need("fisher", source) for source in experts]
    if isinstance(operator, RegMean):
        return [need("inputs", source) for source in experts]
    if isinstance(operator, RegMeanPlus):
        others = [content(recipe.sources[source]) for source in experts]
        more = {"others": others, "calibration": calibration.digest, "off_diagonal": operator.off_diagonal}
        return [need("merged_inputs", source, number=number, **more) for number, source in enumerate(experts)]
    kept = need("fisher", operator.source)
    voters = [source for source in experts if source != operator.source]
    return [kept, *(need("votes", source, against=kept.key, protection=operator.protection) for source in voters)]


@dataclass(frozen=True)
class Statistic:
    """A complete statistic.

    Attributes:
        files: the file that holds each tensor's, by the tensor's name.
        transposed: tensors stored as (inputs, outputs), where linear layers have (outputs, inputs).
        numbers: what else is known, by name.
    """

    folder: Path
    files: dict[str, str]
    transposed: frozenset[str]
    numbers: dict[str, float]

    @classmethod
    def read(cls, need: Need) -> Statistic:
        """Open what `Recorder` wrote.

        Raises:
            BadRecipe: it has not been computed.
        """
        try:
            value = json.loads((need.folder / _CONTENTS).read_text(encoding="utf-8"))
            return cls(need.folder, value["files"], frozenset(value["transposed"]), value["numbers"])
        except (OSError, ValueError, KeyError) as error:
            raise BadRecipe(f"{need.folder}: statistics of kind {need.kind} are not there ({error})") from None

    def tensor(self, name: str) -> Tensor:
        """Return what is known of tensor ``name``, mapped from the file."""
        return mapped(self.folder / self.files[name])


def read(operator: Statistical, recipe: Recipe) -> tuple[Statistic, ...]:
    """Return the statistics that ``operator`` needs, in the order of `needs`.

    Raises:
        BadRecipe: the prompts are not here, or the statistics have not been computed.
    """
    return tuple(Statistic.read(need) for need in needs(operator, recipe, recall(operator.prompts)))


@dataclass
class Recorder:
    """Writes one statistic; it is complete, and found, after `finish`."""

    need: Need
    _files: dict[str, str] = field(default_factory=dict)
    _transposed: set[str] = field(default_factory=set)

    def add(self, names: Sequence[str], value: Tensor, *, transposed: Sequence[str] = ()) -> None:
        """Write ``value``, which is what is known of the tensors ``names``.

        Raises:
            NotEnoughRoom: it cannot be written.
        """
        file = f"{names[0]}.safetensors"
        write(self.need.folder / file, value.cpu().contiguous())
        self._files |= dict.fromkeys(names, file)
        self._transposed |= set(transposed)

    def finish(self, **numbers: float) -> None:
        """Write the list of contents, with ``numbers`` that belong to all tensors.

        Raises:
            NotEnoughRoom: it cannot be written.
        """
        value: dict[str, Any] = {
            "kind": self.need.kind,
            "files": self._files,
            "transposed": sorted(self._transposed),
            "numbers": numbers,
        }
        file = self.need.folder / _CONTENTS
        with in_the_cache(file), replacing(file) as temporary:
            temporary.write_text(json.dumps(value), encoding="utf-8")
