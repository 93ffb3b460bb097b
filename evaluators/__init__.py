"""How a model is measured: tasks, document splits, the request plan, scoring, statistics."""
