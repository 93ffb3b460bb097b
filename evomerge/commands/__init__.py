"""The commands of `evomerge`, grouped by what they work on; `evomerge.cli` puts them together."""
