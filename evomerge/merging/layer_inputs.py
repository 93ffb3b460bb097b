"""Statistics of what enters linear layers on calibration prompts: Gram matrices, of the experts or behind a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evomerge.errors import BadSource
from evomerge.merging import statistical
from evomerge.merging.assembly import layers_of
from evomerge.merging.exhibit import Exhibit
from evomerge.merging.statistics import Recorder
from search_spaces.calibration import Sample
from search_spaces.tensors import by_layer, in_stack

Step = Callable[[], None]
_SHARE_OF_ROOM = 0.5  # of the free memory that Gram matrices may take at once
Linears = dict[str, nn.Module]  # linear layers by the names of their weights


def inputs(exhibit: Exhibit, source: int, samples: Sequence[Sample], recorder: Recorder, step: Step) -> None:
    """Record the mean over all tokens of ``x x^T``, float32 (inputs, inputs), of every linear layer of an expert.

    Layers with the same input share one. If all matrices (4 bytes an element) take more than half of the free memory,
    the prompts are run several times, for as many layers at a time as fit.

    Raises:
        BadSource: an input is not finite.
        NotEnoughRoom: not even one matrix fits into memory, or they do not fit on the disk.
    """
    exhibit.show(source)
    linears = linear_layers(exhibit)
    run = partial(_run, exhibit)
    shared = _with_same_input(linears, lambda: run(samples[0]))
    for group in _groups(exhibit, linears, shared):
        with summing({names: linears[names[0]] for names in group}) as sums:
            for sample in samples:
                run(sample)
                step()
        _record(exhibit, source, sums, samples, recorder, linears)
    recorder.finish(tokens=_tokens(samples))


def passes(exhibit: Exhibit) -> int:
    """Return how often `inputs` runs the prompts."""
    linears = linear_layers(exhibit)
    return len(_groups(exhibit, linears, [(name,) for name in linears]))


def merged_inputs(
    exhibit: Exhibit,
    samples: Mapping[int, Sequence[Sample]],
    recorders: Mapping[int, Recorder],
    step: Step,
    *,
    off_diagonal: float,
) -> None:
    """Record the same for all experts at once, behind layers that are merged: the statistics of RegMean++.

    Layer by layer every expert's own layer (``samples`` by its position) is run on what the merged layers before it
    made of its prompts. The merge is RegMean's with weights 1 / K. What enters the layer is kept for all prompts.

    Raises:
        BadSource, NotEnoughRoom: as `inputs`.
    """
    exhibit.show_average()
    layers = layers_of(exhibit.model)
    calls = {source: [_first_call(exhibit, layers, sample) for sample in own] for source, own in samples.items()}
    tensors = by_layer(exhibit.tensors, len(layers))
    for number, layer in enumerate(layers):
        linears = {name: module for name, module in linear_layers(exhibit).items() if name in set(tensors[number])}
        grams: dict[int, dict[str, Tensor]] = {}
        for source, own in calls.items():
            _show_layer(exhibit, source, tensors[number])
            first = own[0]
            shared = _with_same_input(linears, lambda: first.run(layer, number))  # noqa: B023 - called at once
            with summing({names: linears[names[0]] for names in shared}) as sums:
                for call in own:
                    call.run(layer, number)
            grams[source] = _record(exhibit, source, sums, samples[source], recorders[source], linears)
        _merge_layer(exhibit, tensors[number], grams, linears, off_diagonal)
        for own in calls.values():
            for call in own:
                call.hidden = call.run(layer, number)
                step()
    for source, recorder in recorders.items():
        recorder.finish(tokens=_tokens(samples[source]))


class _Call:
    """How the layers are called for one prompt, and what enters the next one."""

    def __init__(self) -> None:
        self.hidden: Tensor | None = None
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Keep the arguments of the next layer; the hidden states only of the first."""
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        if self.hidden is None:
            self.hidden = hidden.clone()
        self._arguments.append((arguments[1:], {k: v for k, v in keywords.items() if k != "hidden_states"}))

    @torch.no_grad()
    def run(self, layer: nn.Module, number: int) -> Tensor:
        """Return what layer ``number`` makes of the hidden states."""
        rest, keywords = self._arguments[number]
        found = layer(self.hidden, *rest, **keywords)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out


def _first_call(exhibit: Exhibit, layers: nn.ModuleList, sample: Sample) -> _Call:
    call = _Call()
    hooks = [layer.register_forward_pre_hook(call.take, with_kwargs=True) for layer in layers]
    try:
        _run(exhibit, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return call


def _show_layer(exhibit: Exhibit, source: int, names: Sequence[str]) -> None:
    for name in names:
        exhibit.tensors[name].copy_(exhibit.checkpoints[source].tensor(name))


def _merge_layer(
    exhibit: Exhibit,
    names: Sequence[str],
    grams: Mapping[int, Mapping[str, Tensor]],
    linears: Linears,
    off_diagonal: float,
) -> None:
    """Make one layer RegMean's merge; tensors without Gram matrices become the average."""
    base = exhibit.recipe.base or 0
    for name in names:
        start = exhibit.checkpoints[base].tensor(name).double()
        found = [exhibit.checkpoints[source].tensor(name).double() - start for source in grams]
        if name in linears:
            turned = isinstance(linears[name], Conv1D)
            own = [each[name] for each in grams.values()]
            found = statistical.regmean([tau.T if turned else tau for tau in found], own, off_diagonal)
            found = [vector.T if turned else vector for vector in found]
        exhibit.tensors[name].copy_(start + torch.stack(found).mean(0))


def linear_layers(exhibit: Exhibit) -> Linears:
    """Return the linear layers of the stack by the names of their weights in the checkpoints."""
    found: Linears = {}
    for module in exhibit.model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module.weight is not None:
            name = exhibit.names.get(module.weight.data_ptr())
            if name is not None and in_stack(name):
                found[name] = module
    return found


def _with_same_input(linears: Linears, run: Callable[[], object]) -> list[tuple[str, ...]]:
    """Return the names of linear layers that ``run`` calls with one and the same tensor, together."""
    groups: dict[int, list[str]] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def noted(name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        kept.append(arguments[0])
        groups.setdefault(id(arguments[0]), []).append(name)

    hooks = [module.register_forward_pre_hook(partial(noted, name)) for name, module in linears.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    together = [tuple(dict.fromkeys(names)) for names in groups.values()]
    seen = {name for names in together for name in names}
    return [*together, *((name,) for name in linears if name not in seen)]


def _groups(exhibit: Exhibit, linears: Linears, shared: Sequence[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Return ``shared`` in groups whose Gram matrices fit into memory together."""
    room = int(_SHARE_OF_ROOM * exhibit.room())
    groups: list[list[tuple[str, ...]]] = [[]]
    used = 0
    for names in shared:
        needed = 4 * _width(linears[names[0]]) ** 2
        exhibit.reserve(needed, f"the Gram matrix of {names[0]!r}")
        if groups[-1] and used + needed > room:
            groups.append([])
            used = 0
        groups[-1].append(names)
        used += needed
    return groups


def _width(module: nn.Module) -> int:
    rows, columns = module.weight.shape  # type: ignore[misc]
    return int(rows if isinstance(module, Conv1D) else columns)


@contextmanager
def summing(linears: Mapping[tuple[str, ...], nn.Module]) -> Iterator[dict[tuple[str, ...], Tensor]]:
    """Inside, ``x x^T`` of all inputs of ``linears`` are summed, float32, into what is yielded."""
    sums: dict[tuple[str, ...], Tensor] = {}

    def take(names: tuple[str, ...], module: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows = arguments[0].reshape(-1, _width(module)).float()
        sums[names].addmm_(rows.T, rows)

    hooks = []
    for names, module in linears.items():
        width = _width(module)
        sums[names] = torch.zeros((width, width), dtype=torch.float32, device=module.weight.device)  # type: ignore[arg-type]
        hooks.append(module.register_forward_pre_hook(partial(take, names)))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def _record(
    exhibit: Exhibit,
    source: int,
    sums: dict[tuple[str, ...], Tensor],
    samples: Sequence[Sample],
    recorder: Recorder,
    linears: Linears,
) -> dict[str, Tensor]:
    """Record the means; return them by name, too, on the CPU."""
    found: dict[str, Tensor] = {}
    for names in list(sums):
        mean = (sums.pop(names) / _tokens(samples)).cpu()
        if not bool(torch.isfinite(mean).all()):
            path = exhibit.checkpoints[source].path
            raise BadSource(f"{path}: on the calibration prompts the input of {names[0]!r} is not finite")
        recorder.add(names, mean, transposed=[name for name in names if isinstance(linears[name], Conv1D)])
        found |= dict.fromkeys(names, mean)
    return found


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.tokens) for sample in samples)


@torch.no_grad()
def _run(exhibit: Exhibit, sample: Sample) -> None:
    exhibit.model.base_model(exhibit.tokens(sample), use_cache=False)
