"""Keys and values: of shared prefixes, computed once a model and read by every batch that begins with them, and of
batches that are continued, in a place that is as large as they can grow."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeAlias

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from evaluators.head import head_on, last_position
from evaluators.meter import Meter
from evaluators.prefixes import common_length

# tokens kept: the prefixes of one model. 57 subjects of five shots each are more than this holds at a time
_TOKENS_KEPT = 1 << 14
# a known prefix is prolonged if this share of the new one is in it
_PROLONGED_FROM = 0.5


KeysAndValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class SharedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of a prefix, each (1, heads, tokens, size).

    An update returns them followed by those of each row and keeps nothing, so one cache serves any number of batches.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._prefix = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prefix's and the rows' own keys and values: (rows, heads, all tokens, size) each."""
        keys, values = (kept.expand(len(key_states), -1, -1, -1) for kept in self._prefix)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values with room for ``room`` tokens: a step writes its own and copies none of the others.

    ``prefix`` is what all rows begin with: keys and values, each (1, heads, tokens, size).
    """

    def __init__(self, room: int, prefix: KeysAndValues | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room, self._prefix = room, prefix
        self._length = 0 if prefix is None else prefix[0].shape[-2]
        self._places: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the next tokens of each row; return all so far: (rows, heads, all tokens, size) each."""
        new = key_states, value_states
        if not self._places:
            self.lazy_initialization(key_states, value_states)
            self._places = tuple(state.new_empty(*state.shape[:2], self._room, state.shape[3]) for state in new)
            for place, kept in zip(self._places, self._prefix or (), strict=False):
                place[:, :, : self._length] = kept
        end = self._length + key_states.shape[-2]
        for place, state in zip(self._places, new, strict=True):
            place[:, :, self._length : end] = state
        self._length = end
        self.keys, self.values = (place[:, :, :end] for place in self._places)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens of each row so far."""
        return self._length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices``."""
        self._places = tuple(place[indices] for place in self._places)
        self.keys, self.values = (place[:, :, : self._length] for place in self._places)


class Prefixes:
    """The prefixes that one model has computed. Throw it away when the model's weights change."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, ...], tuple[KeysAndValues, ...]] = OrderedDict()

    def cache(self, model: Any, tokens: tuple[int, ...], meter: Meter) -> Cache:
        """Return a cache of ``tokens`` for any number of batches; call under `torch.inference_mode`."""
        return Cache(layers=[SharedLayer(*kept) for kept in self._layers(model, tokens, meter)])

    def roomy_cache(self, model: Any, tokens: tuple[int, ...], meter: Meter, *, room: int) -> Cache:
        """Return a cache of ``tokens``, which may be none, for one batch that grows to ``room`` tokens."""
        if tokens:
            return Cache(layers=[RoomyLayer(room, kept) for kept in self._layers(model, tokens, meter)])
        return Cache(layers=[RoomyLayer(room) for _ in range(model.config.num_hidden_layers)])

    def _layers(self, model: Any, tokens: tuple[int, ...], meter: Meter) -> tuple[KeysAndValues, ...]:
        if tokens not in self._known:
            self._known[tokens] = self._computed(model, tokens, meter)
            while len(self._known) > 1 and sum(map(len, self._known)) > _TOKENS_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(tokens)
        return self._known[tokens]

    def _computed(self, model: Any, tokens: tuple[int, ...], meter: Meter) -> tuple[KeysAndValues, ...]:
        cache = DynamicCache()
        known, length = self._nearest(tokens)
        if length:
            for number, (keys, values) in enumerate(self._known[known]):
                cache.update(keys[:, :, :length], values[:, :, :length], number)
        new = torch.tensor([tokens[length:]], device=model.device)
        with meter.forward(new.numel()), head_on(model, last_position):
            model(input_ids=new, past_key_values=cache, use_cache=True)
        return tuple(map(_kept, cache.layers))

    def _nearest(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The known prefix that begins most like ``tokens``, and how many tokens of it to use: 0 if few or all."""
        lengths = {known: common_length(known, tokens) for known in self._known}
        best = max(lengths, key=lambda known: lengths[known], default=())
        length = min(lengths.get(best, 0), len(tokens) - 1)
        return best, length if length >= _PROLONGED_FROM * len(tokens) else 0


def _kept(layer: Any) -> KeysAndValues:
    return layer.keys, layer.values
