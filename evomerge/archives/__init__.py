"""What is kept of a search: Pareto fronts and their hypervolume."""
