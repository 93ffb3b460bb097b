"""Ready parameter spaces: the published genomes, as settings that can be read and changed."""

from __future__ import annotations

from search_spaces.parameter_space import ParameterSpaceSettings


def sakana() -> ParameterSpaceSettings:
    """DARE-TIES with one weight and one density per expert: the 7B model of Akiba et al. 2025 (6 genes for 3 experts).

    The paper leaves normalisation and the mask seed open; weights are not normalised here because its optimum
    sums to about 2, and masks come from the search's seed.
    """
    return ParameterSpaceSettings.model_validate({"preset": "sakana"})


def mergekit_evolve(
    operator: str, *, experts: int, layers: int, layer_granularity: int = 0, smooth: bool = False
) -> ParameterSpaceSettings:
    """The genome of mergekit-evolve: `layer_granularity` layers a group (0: one group), weights start at 1/experts.

    Bounds replace its ``abs()``, and densities start at 1 as there.

    Raises:
        ValueError: the granularity does not divide the number of layers, or the operator is none of its five.
    """
    if operator not in ("linear", "task_arithmetic", "ties", "dare_ties", "slerp"):
        raise ValueError(f"mergekit-evolve has linear, task_arithmetic, ties, dare_ties and slerp, not {operator!r}")
    if layer_granularity and layers % layer_granularity:
        raise ValueError(f"layer_granularity {layer_granularity} does not divide the {layers} layers")
    return ParameterSpaceSettings.model_validate(
        {
            "operator": operator,
            "layer_groups": layers // layer_granularity if layer_granularity else 1,
            "smooth": smooth,
            "weight": (0.0, 1.5),
            "weight_start": 1.0 / experts,
            "density": (0.0, 1.0),
            "density_start": 1.0,
            "normalize": operator in ("linear", "ties", "dare_ties"),
        }
    )
