"""What the read commands print: tables for people, JSON types for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluators.evaluation import Stop
from evomerge import crews
from evomerge.inspection import PARTS, Distance, Inspection
from evomerge.optimizers.settings import SURROGATE_KINDS
from evomerge.records import CandidateRecord, EvaluationRecord, Split
from evomerge.results import JOINT, Estimate, Results, Row
from evomerge.standing import standing
from evomerge.storage_url import masked

if TYPE_CHECKING:
    from evomerge.predicted import Predicted


def interval(estimate: Estimate | None) -> str:
    """Return ``0.873 [0.851, 0.893]``, or a dash without a value."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def printer(*, error: bool = False) -> Console:
    """Return a console: as wide as the terminal, or wide enough for any table where there is none."""
    console = Console(stderr=error)
    return console if console.is_terminal else Console(stderr=error, width=160)


def comparison_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """Test scores with 95 % intervals below them, one model a row; the joint score first."""
    columns = [JOINT, *names] if len(names) > 1 else list(names)
    table = Table(title="Held-out test documents, 95 % intervals", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("model", min_width=16, overflow="fold")
    for name in columns:
        table.add_column(Text(name.replace("/", "\n")), justify="right", no_wrap=True)
    for row in rows:
        cells = [Text(_two_lines(row.estimates.get(name))) for name in columns]
        table.add_row(Text(row.label), *cells, style="bold" if row.role == "winner" else None)
    return table


def _two_lines(estimate: Estimate | None) -> str:
    """The value above its interval: narrow enough for five columns on a terminal of 80."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return interval(estimate)
    return f"{estimate.value:.3f}\n{estimate.low:.3f}–{estimate.high:.3f}"


def inspection_table(inspection: Inspection) -> Table:
    """How far every expert is from the base: relative distance and cosine, of everything and of the parts."""
    title = "Experts beside the base: distance of the weights in units of the base's norm, and cosine"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("expert", overflow="fold")
    for column in ("all", *PARTS):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for expert, name in enumerate(inspection.experts):
        parts = [inspection.part(expert, part) for part in range(len(PARTS))]
        cells = [_distance(distance) for distance in (inspection.whole(expert), *parts)]
        table.add_row(Text(name), *cells, Text("\n".join(inspection.findings(expert))))
    return table


def _distance(distance: Distance | None) -> str:
    return "-" if distance is None else f"{distance.relative:.2g}\n{distance.cosine:.4f}"


def front_table(results: Results, members: Sequence[CandidateRecord], what: str = "Pareto front") -> Table:
    """``members`` - the front, or a portfolio - on search documents, with validation where it was measured."""
    table = Table(title=f"{what} of {results.record.name} (search documents)", title_justify="left")
    for column in ("candidate", *results.chooser.names, "preference", "validation"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    chosen = results.winner.number if results.winner else None
    for candidate in members:
        values = candidate.values("search", results.chooser.names)
        numbers = [] if values is None else [f"{value:.3f}" for value in values]
        validation = results.chooser.number(candidate, "validation")
        cells = [*numbers, f"{results.chooser.number(candidate, 'search'):.3f}"]
        cells.append(f"{validation:.3f}" if candidate.values("validation", results.chooser.names) is not None else "-")
        style = "bold" if candidate.number == chosen else None
        table.add_row(Text(f"{candidate.number} {candidate.name or ''}".strip()), *cells, style=style)
    return table


def status_lines(results: Results) -> list[str]:
    """Return what `evomerge status` prints."""
    file, now = results.file, standing(results)
    lines = [
        f"search      {results.record.name}: {now.words}",
        *([f"continue    {now.remedy}"] if now.remedy else []),
        f"evaluations {results.spent} of {file.budget.evaluations} ({results.record.row.seconds:.0f} s)",
        f"stopped     {results.stop_reason or 'no'}",
        f"candidates  {len(results.candidates)}, {len(results.front)} on the front",
        f"failures    {', '.join(f'{k}: {v}' for k, v in results.failures.items()) or 'none'}",
        f"storage     {masked(results.record.store.storage)}",
    ]
    if crew := crews.at_work(results.record):
        lines.append(f"workers     {crew.line}")
    if surrogates := _surrogates(results):
        lines.append(f"surrogates  {surrogates.line}")
    if results.stopped:
        seen = results.costs["search"].documents / (results.spent * documents_of(results, "search"))
        lines.append(f"estimated   {results.stopped} from some documents; {seen:.0%} of the documents were evaluated")
    if results.winner:
        validation = results.chooser.number(results.winner, "validation")
        lines.append(
            f"winner      candidate {results.winner.number}: {validation:.3f} on validation, "
            f"{results.finalists[0].worth:.3f} without the winner's curse"
        )
    return lines


def documents_of(results: Results, split: Split) -> int:
    """Return how many documents a full evaluation on ``split`` takes."""
    return sum(map(len, results.record.row.plan["documents"][split].values()))


def status_json(results: Results) -> dict[str, Any]:
    """Return the same as JSON types."""
    now, crew = standing(results), crews.at_work(results.record)
    return {
        "search": results.record.name,
        "state": now.state,
        "driver": now.driver,
        "last_sign": now.last_sign,
        "evaluations": results.spent,
        "budget": results.file.budget.evaluations,
        "stop_reason": results.stop_reason,
        "seconds": results.record.row.seconds,
        "candidates": len(results.candidates),
        "front": [candidate.number for candidate in results.front],
        "failures": results.failures,
        "stopped": results.stopped,
        "documents": results.costs["search"].documents if "search" in results.costs else 0,
        "winner": results.winner.number if results.winner else None,
        "surrogates": surrogates.r_squared if (surrogates := _surrogates(results)) else None,
        "winner_shrunken": results.finalists[0].worth if results.winner else None,
        "workers": [asdict(seat) for seat in crew.seats] if crew else [],
        "crowd": crew.crowd._asdict() if crew and crew.crowd else None,
    }


def _surrogates(results: Results) -> Predicted | None:
    """The surrogates' fit to what is measured, without a front; None where the search uses none or cannot fit yet."""
    if results.file.optimizer.kind not in SURROGATE_KINDS:
        return None
    from evomerge.predicted import has_surrogates, predict  # SciPy takes a second

    return predict(results, front=False) if has_surrogates(results) else None


def candidate_json(results: Results, candidate: CandidateRecord) -> dict[str, Any]:
    """Return one candidate with all its evaluations as JSON types."""
    evaluations: dict[str, Any] = {}
    for split, evaluation in candidate.evaluations.items():
        if evaluation.failure:
            evaluations[split] = {
                "failure": evaluation.failure.kind.value,
                "message": evaluation.failure.message,
            }
            continue
        if evaluation.stopped:
            evaluations[split] = {
                "stopped": asdict(evaluation.stopped),
                "estimates": {
                    name: {"value": m.value, "standard_error": m.standard_error}
                    for name, m in evaluation.scores.items()
                },
            }
            continue
        estimates = results.estimate(candidate, split)
        evaluations[split] = {
            name: {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            for name, estimate in estimates.items()
        }
    return {
        "number": candidate.number,
        "origin": candidate.origin,
        "name": candidate.name,
        "state": candidate.state,
        "genome": candidate.genome.values.tolist() if candidate.genome else None,
        "recipe_digest": candidate.recipe_digest,
        "parents": list(candidate.parents),
        "evaluations": evaluations,
        "truncated": {split: dict(e.truncated) for split, e in candidate.evaluations.items() if e.truncated},
        "over_limits": {split: dict(e.over_limits) for split, e in candidate.evaluations.items() if e.over_limits},
    }


def candidate_table(results: Results, candidate: CandidateRecord) -> Table:
    """One candidate's scores on every split that was measured."""
    table = Table(title=f"{candidate.label} ({candidate.origin}, {candidate.state})", title_justify="left")
    table.add_column("objective")
    for split in candidate.evaluations:
        table.add_column(split, justify="right")
    estimates = {split: results.estimate(candidate, split) for split in candidate.evaluations}
    for name in (*results.chooser.names, JOINT):
        table.add_row(Text(name), *[interval(of.get(name)) for of in estimates.values()])
    remarks = [f"{split}: {text}" for split, e in candidate.evaluations.items() for text in _remarks(e)]
    table.caption = Text("\n".join(remarks)) if remarks else None
    return table


def _remarks(evaluation: EvaluationRecord) -> Iterator[str]:
    """What is to be known of the scores, or why there are none."""
    if evaluation.failure:
        yield f"{evaluation.failure.kind.value}: {evaluation.failure.message}"
    if evaluation.stopped:
        yield f"{in_words(evaluation.stopped)}: {_estimated(evaluation)}"
    for task, count in evaluation.truncated.items():
        yield f"{count} documents of {task} lost their beginning to the model's context"
    for task, count in evaluation.over_limits.items():
        yield f"the code of {count} documents of {task} ran out of its limits and scored 0"


def in_words(stop: Stop) -> str:
    """Return why a candidate saw only some of the documents, for people."""
    if stop.minibatch is not None:
        return f"saw minibatch {stop.minibatch}, {stop.documents} of {stop.of} documents"
    return (
        f"stopped after {stop.documents} of {stop.of} documents with a chance of {stop.chance:.1%} "
        f"to reach candidate {stop.rival}"
    )


def _estimated(evaluation: EvaluationRecord) -> str:
    """``estimates: first/acc 0.41 ± 0.05``; no scores, and never shown as such."""
    parts = [f"{name} {m.value:.3f} ± {m.standard_error:.3f}" for name, m in evaluation.scores.items()]
    return f"estimates: {', '.join(parts)}"


def gene_table(results: Results, candidate: CandidateRecord) -> Table:
    """The genome by gene name."""
    table = Table(title="genome", title_justify="left")
    table.add_column("gene")
    table.add_column("value", justify="right")
    names = results.record.row.plan["genes"]
    values = candidate.genome.values.tolist() if candidate.genome else []
    for name, value in zip(names, values, strict=False):
        table.add_row(Text(name), f"{value:.4f}")
    return table
