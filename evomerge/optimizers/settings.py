"""The `optimizer` section of a search file: one class an algorithm, told apart by `kind`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from evomerge.plugins import find
from search_spaces.canonical import Frozen

if TYPE_CHECKING:
    from evomerge.optimizers.contract import Optimizer
    from evomerge.optimizers.setting import Setting

DEFAULT_KIND = "cma_es"


class _Settings(Frozen):
    seed: int = Field(default=0, ge=0, lt=2**63)


class AutoSettings(_Settings):
    """An algorithm chosen by the numbers of genes, objectives and evaluations (optimizers/choice.py)."""

    kind: Literal["auto"] = "auto"


class CmaEsSettings(_Settings):
    """CMA-ES on the weighted mean of the objectives."""

    kind: Literal["cma_es"] = "cma_es"
    sigma: float = Field(default=0.1, gt=0.0, le=1.0, description="first step, as a share of each gene's range")
    population: int | None = Field(
        default=None, ge=4, description="4 + 3 ln(genes) by default, 4 + 1.5 ln(genes) with preselection"
    )
    separable: bool | None = Field(default=None, description="no correlations of genes; from 100 genes on by default")
    correlation: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="at the start, between genes that differ only in where they apply"
    )
    preselect: int = Field(
        default=1, ge=1, le=1000, description="points drawn for each that is evaluated; a Gaussian process chooses"
    )


class Nsga2Settings(_Settings):
    """NSGA-II."""

    kind: Literal["nsga2"] = "nsga2"
    population: int | None = Field(default=None, ge=4, description="30 by default")


class Nsga3Settings(_Settings):
    """NSGA-III."""

    kind: Literal["nsga3"] = "nsga3"
    population: int | None = Field(default=None, ge=4, description="30 by default")


class TwoStageSettings(_Settings):
    """CMA-ES on densities, then on weights with a penalty on their size; for pools of dozens of experts."""

    kind: Literal["two_stage"] = "two_stage"
    first_stage: int | None = Field(default=None, ge=1, description="evaluations; 5 populations by default")
    penalty: float = Field(default=0.01, ge=0.0, description="what a mean weight of 1 costs in the second stage")


class TpeSettings(_Settings):
    """Tree-structured Parzen estimator."""

    kind: Literal["tpe"] = "tpe"


class GpSettings(_Settings):
    """Gaussian process."""

    kind: Literal["gp"] = "gp"


class RandomSettings(_Settings):
    """Uniform random points."""

    kind: Literal["random"] = "random"


class SobolSettings(_Settings):
    """Scrambled Sobol points."""

    kind: Literal["sobol"] = "sobol"


class _BreedingSettings(_Settings):
    split: bool = Field(default=True, description="cross by w before a random split point and by 1 - w after it")
    warm_up: int = Field(default=20, ge=0, description="random points before the archive is bred from")


class NaturalNichesSettings(_BreedingSettings):
    """Natural niches (M2N2): members compete for the documents that they solve."""

    kind: Literal["natural_niches"] = "natural_niches"
    archive: int = Field(default=20, ge=2, description="members kept")
    alpha: float = Field(default=1.0, ge=0.0, description="how strongly members compete; 0: a plain genetic algorithm")
    attraction: bool = Field(default=True, description="draw the second parent by what it would add to the first")


class MapElitesSettings(_BreedingSettings):
    """MAP-Elites: the best of every cell of a grid over the objectives."""

    kind: Literal["map_elites"] = "map_elites"
    cells: int = Field(default=10, ge=1, description="per objective")


class MapSettings(_Settings):
    """Quadratic surrogates of every objective, NSGA-III on them."""

    kind: Literal["map"] = "map"
    design: int | None = Field(default=None, ge=3, description="points before the first fit; 1.5 a coefficient")
    batch: int | None = Field(default=None, ge=1, description="points chosen from one fit; half as many as genes")


class BayesianMapSettings(_Settings):
    """MAP whose design goes where the surrogates are uncertain."""

    kind: Literal["bayesian_map"] = "bayesian_map"
    design: int | None = Field(default=None, ge=3, description="points before the front is searched; 1.5 a coefficient")
    batch: int | None = Field(default=None, ge=1, description="points chosen from one fit; half as many as genes")


class NestedMapSettings(_Settings):
    """MAP on two models at a time, up to one merge of all; on the preference."""

    kind: Literal["nested_map"] = "nested_map"
    evaluations_per_pair: int = Field(default=12, ge=8, description="evaluations of each merge of two")


class CycleQdSettings(_Settings):
    """CycleQD: an archive per task, each task in turn quality, the others behaviour."""

    kind: Literal["cycle_qd"] = "cycle_qd"
    bins: int = Field(default=15, ge=2, description="cells of each behaviour")


class CatCmaSettings(_Settings):
    """CatCMA with margin, for spaces with integer and categorical genes; on the preference."""

    kind: Literal["cat_cma"] = "cat_cma"
    population: int | None = Field(default=None, ge=4, description="4 + 3 ln(genes) by default")


class OptimizerPlugIn(_Settings):
    """Base class of the settings of an optimizer that another package brings.

    Its `kind` is the name of its entry point in the group `evomerge.optimizers`.
    """

    kind: str

    @abstractmethod
    def make(self, setting: Setting) -> Optimizer:
        """Return a new optimizer (`evomerge.optimizers.contract`), whose draws follow from `seed` alone.

        Raises:
            ValueError: it cannot search such a space; the text says why.
        """


_Own: TypeAlias = (
    CmaEsSettings
    | TwoStageSettings
    | Nsga2Settings
    | Nsga3Settings
    | TpeSettings
    | GpSettings
    | RandomSettings
    | SobolSettings
    | MapSettings
    | BayesianMapSettings
    | NestedMapSettings
    | CycleQdSettings
    | CatCmaSettings
    | NaturalNichesSettings
    | MapElitesSettings
)
Algorithm: TypeAlias = _Own | OptimizerPlugIn
AlgorithmKind = Literal[
    "cma_es", "two_stage", "nsga2", "nsga3", "tpe", "gp", "random", "sobol",
    "map", "bayesian_map", "nested_map", "cycle_qd", "cat_cma",
    "natural_niches", "map_elites",
]  # fmt: skip

BREEDERS: tuple[AlgorithmKind, ...] = ("natural_niches", "map_elites")  # which can search mosaics
SURROGATE_KINDS: tuple[AlgorithmKind, ...] = ("map", "bayesian_map")  # whose fit follows from the record


def _with_kind(value: Any) -> Any:
    return {"kind": DEFAULT_KIND, **value} if isinstance(value, dict) else value


KINDS: tuple[AlgorithmKind, ...] = get_args(AlgorithmKind)


def _own_or_plugged(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, dict) else getattr(value, "kind", None)
    if not isinstance(kind, str):
        return handler(value)
    plugged = find("optimizers", kind, OptimizerPlugIn, ("auto", *KINDS))  # type: ignore[type-abstract]
    return handler(value) if plugged is None else plugged.model_validate(value)


if TYPE_CHECKING:
    OptimizerSettings: TypeAlias = AutoSettings | Algorithm
else:
    OptimizerSettings = Annotated[
        AutoSettings | _Own,
        Field(discriminator="kind"),
        BeforeValidator(_with_kind),
        WrapValidator(_own_or_plugged),
        SerializeAsAny(),
    ]
_ADAPTER: TypeAdapter[AutoSettings | Algorithm] = TypeAdapter(OptimizerSettings)


def algorithm(kind: AlgorithmKind, **settings: Any) -> Algorithm:
    """Return the settings of one algorithm, checked.

    Raises:
        pydantic.ValidationError: they break its schema.
    """
    checked = _ADAPTER.validate_python({"kind": kind, **settings})
    if isinstance(checked, AutoSettings):
        raise ValueError("auto names no algorithm")
    return checked
