"""mergekit configs in and out: the names that the rest of evomerge uses."""

from evomerge.merging.mergekit_reader import from_mergekit
from evomerge.merging.mergekit_writer import to_mergekit

__all__ = ["from_mergekit", "to_mergekit"]
