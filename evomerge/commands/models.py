"""Commands about models: export, merge, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import evomerge
from evomerge.commands.common import AsJson, SearchName, Storage, To, open_search, print_json, progress_bar
from evomerge.shares import shares

if TYPE_CHECKING:
    from evomerge.results import Results

WeightsDtype = Annotated[
    str | None, typer.Option("--dtype", help="of the weights: float32, bfloat16 or float16; the recipe's by default")
]

MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", help="most memory that the merge takes beside the mapped models: 2GiB, 500MB"),
]


def export(
    search: SearchName,
    to: To,
    candidate: Annotated[int | None, typer.Option(help="number of the candidate")] = None,
    best: Annotated[bool, typer.Option("--best", help="the winner (the default)")] = False,
    prefer: Annotated[
        str | None, typer.Option(help="choose from the front: task=weight,... or task>=least,... or chebyshev")
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--format", help="checkpoint, adapter, reversible, mergekit, recipe; all: csv, parquet, optuna"),
    ] = "checkpoint",
    rank: Annotated[
        int | None, typer.Option(help="most rank of an adapter or a basis; the ranks add up by default", min=1)
    ] = None,
    dtype: WeightsDtype = None,
    memory_limit: MemoryLimit = None,
    storage: Storage = evomerge.DEFAULT_STORAGE,
) -> None:
    """Write a candidate as a checkpoint, a LoRA adapter, a mergekit config or a recipe; or all of them as tables."""
    from evomerge import export as exporting

    results = open_search(search, storage)
    if kind in (*exporting.TABLES, exporting.OPTUNA):
        if candidate is not None or best or prefer or rank or dtype or memory_limit:
            raise typer.BadParameter(f"--format {kind} writes all candidates; leave out what chooses or changes one")
        _export_all(results, to, kind)
        return
    chosen = exporting.choose(results, candidate=candidate, best=best, prefer=prefer)
    with progress_bar("exporting") as progress:
        remarks = exporting.export(
            results,
            chosen,
            to,
            kind=kind,
            rank=rank,
            dtype=dtype,
            memory_limit=memory_limit,
            progress=shares(progress, "exporting"),
        )
    _wrote(chosen.label, to, remarks)


def _export_all(results: Results, to: str, kind: str) -> None:
    from evomerge.export import OPTUNA

    if kind == OPTUNA:
        from evomerge.optuna_view import export_study

        export_study(results, to)
    else:
        from evomerge.tabular import write_tables

        with progress_bar("exporting") as progress:
            write_tables(results, to, kind, progress=shares(progress, "exporting"))
    _wrote("all candidates", to, ())


def merge(
    file: Annotated[Path, typer.Argument(help="recipe (JSON) or mergekit config (YAML)")],
    to: To,
    kind: Annotated[
        str, typer.Option("--format", help="checkpoint, or reversible: the experts in one basis")
    ] = "checkpoint",
    rank: Annotated[int | None, typer.Option(help="most rank of a basis; all directions by default", min=1)] = None,
    dtype: WeightsDtype = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Materialise a recipe or a mergekit config as a checkpoint."""
    from evomerge import export as exporting

    with progress_bar("merging") as progress:
        remarks = exporting.merge_file(
            file,
            to,
            kind=kind,
            rank=rank,
            dtype=dtype,
            memory_limit=memory_limit,
            progress=shares(progress, "merging"),
        )
    _wrote("", to, remarks)


def align(
    model: Annotated[str, typer.Argument(help="folder, Hub id or URL of the model whose order changes")],
    like: Annotated[str, typer.Option(help="folder, Hub id or URL of the model whose order it gets")],
    to: To,
) -> None:
    """Write a model with its hidden units and heads in another one's order, to merge models without a common base."""
    from evomerge.align import align as write

    with progress_bar("matching") as progress:
        remarks = write(model, like, to, progress=shares(progress, "matching"))
    _wrote("", to, remarks)


def compress(
    model: Annotated[str, typer.Argument(help="folder, Hub id or URL of a mixture-of-experts model")],
    experts: Annotated[int, typer.Option(help="how many are left in a layer")],
    prompts: Annotated[Path, typer.Option(help="text with a prompt a line, or calibration prompts of an export")],
    to: To,
    like: Annotated[
        str | None, typer.Option(help="model whose experts decide what is merged, for models that share a base: it")
    ] = None,
) -> None:
    """Write a mixture-of-experts model with fewer experts, each the merge of similar ones (M-SMoE)."""
    from evomerge.compress import compress as write

    with progress_bar("compressing") as progress:
        remarks = write(model, experts, prompts, to, like=like, progress=shares(progress, "compressing"))
    _wrote("", to, remarks)


def _wrote(what: str, to: str, remarks: Sequence[str]) -> None:
    from evomerge.targets import shown

    for remark in remarks:
        typer.echo(f"evomerge: {remark}", err=True)
    typer.echo(f"wrote {what} to {shown(to)}" if what else f"wrote {shown(to)}")


def evaluate(
    model_or_recipe: Annotated[
        str | None,
        typer.Argument(metavar="MODEL_OR_RECIPE", help="folder, Hub id, recipe (JSON) or mergekit config (YAML)"),
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="lm-eval task, or task/metric (repeat)")] = None,
    objectives: Annotated[Path | None, typer.Option(help="YAML file with a list `objectives`, of any kind")] = None,
    base: Annotated[str | None, typer.Option(help="base of objectives that are relative to one")] = None,
    endpoint: Annotated[str | None, typer.Option(help="address ending in /completions or /chat/completions")] = None,
    model: Annotated[str | None, typer.Option(help="name of the endpoint's model")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="of the endpoint's model: folder or Hub id")] = None,
    include_path: Annotated[list[str] | None, typer.Option(help="folder with task files of your own (repeat)")] = None,
    trusted_path: Annotated[list[str] | None, typer.Option(help="task folder whose Python may run (repeat)")] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="run code that the model writes, under limits")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="documents per task, the first ones", min=1)] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0)] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the model's own by default")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure any model, or one behind an OpenAI-compatible API, with the evaluator that searches use."""
    from evaluators.objective import EvaluationSettings
    from evomerge import measure
    from evomerge.config import absolute_folders

    if (model_or_recipe is None) == (endpoint is None) or (endpoint is None) != (model is None):
        raise typer.BadParameter("name a model or recipe, or else both --endpoint and --model")
    settings = EvaluationSettings(
        include_path=absolute_folders(include_path or [], Path.cwd()),
        trusted_paths=absolute_folders(trusted_path or [], Path.cwd()),
        allow_code_execution=allow_code_execution,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
    )
    asked = measure.read_objectives(tasks or [], objectives, settings)
    if endpoint is not None and model is not None:
        from evaluators.endpoint import EndpointSettings

        called = EndpointSettings(endpoint, model, tokenizer)
        estimates = measure.measure_endpoint(called, objectives=asked, settings=settings, limit=limit)
    else:
        assert model_or_recipe is not None
        estimates = measure.measure(
            model_or_recipe,
            objectives=asked,
            settings=settings,
            limit=limit,
            dtype=dtype,
            base=base,
            say=partial(typer.echo, err=True),
        )
    if as_json:
        print_json({name: {"value": e.value, "low": e.low, "high": e.high} for name, e in estimates.items()})
        return
    from evomerge.tables import interval

    for name, value in estimates.items():
        typer.echo(f"{name}  {interval(value)}")
