"""What each family of operators tells `operators`: which kernel merges a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evomerge.merging.coefficients import Kernel
from evomerge.merging.selection import Selector
from search_spaces.recipe import Recipe

Maker = Callable[[Any, Recipe, str, Selector], Kernel]  # the operator, its recipe, the tensor's name, selections
