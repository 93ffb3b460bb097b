"""Operators that other packages bring, by entry points in the group `evomerge.operators`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from search_spaces.operators.base import MergeOperator

Tensor: TypeAlias = Any  # torch.Tensor; this package never imports torch
Find = Callable[[str], "type[OperatorPlugIn] | None"]


class OperatorPlugIn(MergeOperator):
    """Base class of an operator that another package brings. Its `kind` is the name of its entry point."""

    kind: str

    @abstractmethod
    def merge(self, name: str, base: Tensor | None, experts: Sequence[Tensor]) -> Tensor:
        """Return the merge of tensor ``name``, of the shape of ``base``.

        It must be a pure function: the same tensors give the same bits, so that what is exported is what was measured.

        Args:
            base: float32, the recipe's base; None if the recipe has none. A copy.
            experts: float32, the other sources in the recipe's order, all of one shape and device. Copies.
        """


def _nowhere(kind: str) -> type[OperatorPlugIn] | None:
    return None


_find: Find = _nowhere


def ask_elsewhere(find: Find) -> None:
    """Let ``find`` say which class a kind is that this package does not have."""
    global _find
    _find = find


def plug_in(kind: Any) -> type[OperatorPlugIn] | None:
    """Return the class that another package brings under ``kind``, or None."""
    return _find(kind) if isinstance(kind, str) else None
