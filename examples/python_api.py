"""The Python API in one page: train two tiny experts, search for their merge, look at the result, export it.

Run: .venv/bin/python examples/python_api.py FOLDER   (about a minute)
"""

import sys
from pathlib import Path

import evomerge
from evomerge.config import parse
from evomerge.export import export
from evomerge.foundry import FoundrySettings, build
from evomerge.report import write_report
from evomerge.tabular import write_tables


def main(folder: Path) -> None:
    """Everything into ``folder``."""
    # Experts of seconds: one reverses digits in language E, one speaks language J. Your own models are folders too.
    experts = build(FoundrySettings.sketch(), cache=folder / "experts")
    file = parse(
        {
            "name": "example",
            "sources": {
                "base": str(experts.base),
                "experts": [str(path) for path in experts.experts.values()],
                "dtype": "float32",
            },
            "space": {"operator": "task_arithmetic", "layer_groups": 3},
            "objectives": [{"task": "rev_j", "metric": "exact_match"}, {"task": "general_j", "metric": "exact_match"}],
            "evaluation": {
                "search_documents": 48,
                "validation_documents": 96,
                "test_documents": 192,
                "include_path": [str(experts.tasks)],
            },
            "budget": {"evaluations": 60, "finalists": 6},
            "cluster": {"backend": "in_process"},
            "storage": f"sqlite:///{folder}/evomerge.db",
        },
        folder=folder,
        where="example",
    )
    results = evomerge.run(file)
    for row in results.table():
        joint = row.estimates["joint"]
        print(f"{row.label:28} {joint.value:.3f} [{joint.low:.3f}, {joint.high:.3f}]")
    print(f"{len(results.front)} recipes on the front; the winner is candidate {results.winner.number}")
    export(results, results.winner, folder / "merged", kind="checkpoint")
    write_tables(results, folder / "tables", "parquet")  # every candidate, every document's score
    write_report(results, folder / "report.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
