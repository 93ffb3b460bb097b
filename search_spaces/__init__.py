"""What a recipe is, and where one can search. NumPy and pydantic only."""
