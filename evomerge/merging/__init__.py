"""Merging: sources, operators, the in-memory engine, export, and mergekit configs in and out."""
