"""What a parameter space must say to the operators that cannot do without."""

from typing import Any


def needed(kind: str, experts: int) -> dict[str, Any]:
    """Return settings with which any operator can be searched over ``experts``, and quickly."""
    needs: dict[str, dict[str, Any]] = {
        "mwa": {"metrics": tuple(0.9 - 0.2 * i for i in range(experts))},
        "doge": {"iterations": 3},
    }
    return needs.get(kind, {})
