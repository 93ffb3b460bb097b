"""Whether a search survives everything: a counted campaign of injected faults, compared with fault-free runs.

Question: of more than 200 faults, after how many was a finished evaluation lost or counted twice, a half-written record
read, the final front another than that of a fault-free run, or a process left behind?

Set-up: searches on simulated evaluations (tests/fakes.py) in driver processes of their own: on the in-process pool
(with a SQLite file, and with a PostgreSQL server), on a private Ray cluster, and on a cluster of two raylets, in
network namespaces of their own where that is allowed. A trial is one search; each fault (tests/faults/trial.py)
strikes a working driver a random number of evaluations after the last one, and the same command continues. Then the
record is compared with a fault-free search of the same seed (tests/faults/checks.py), while somebody reads it all the
time. Seeded: trial n of a seed is always the same plan. What is done is kept in .cache/chaos, so the command goes on
where it was stopped.

Run: `.venv/bin/python benchmarks/chaos.py [--trials 25] [--seed 0] [--only PLATFORM]` (about an hour; as root all
faults are real, otherwise a full disk and a partition are imitated). Writes results/chaos.json.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import ROOT, save

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))  # else tests/evomerge hides evomerge

from faults.checks import Graveyard
from faults.places import Cluster, Disk, NotStarted, Wires
from faults.plans import make_plan
from faults.trial import Plan, Trial
from postgres_server import PostgresServer, find_binaries

FOLDER = ROOT / ".cache" / "chaos"


def run_trial(plan: Plan, graveyard: Graveyard) -> dict[str, Any]:
    """Run one trial; return its plan and its report as JSON types."""
    if plan.platform == "cluster":
        with closing(Cluster()) as cluster:
            report = Trial(plan, graveyard, cluster=cluster).run()
    elif plan.platform == "postgresql":
        with closing(PostgresServer(find_binaries())) as server:
            report = Trial(plan, graveyard, server=server).run()
    else:
        report = Trial(plan, graveyard).run()
    return {
        "platform": plan.platform,
        "optimizer": dict(plan.optimizer),
        "workers": "auto" if plan.elastic else plan.workers,
    } | asdict(report)


def summary(trials: list[dict[str, Any]], orphans: list[str]) -> dict[str, Any]:
    """The counted table: faults by platform and kind, and everything that was wrong."""
    struck: dict[str, Counter[str]] = {}
    for trial in trials:
        struck.setdefault(trial["platform"], Counter()).update(trial["struck"])
    totals = ("drivers", "reads", "refused_reads")
    return {
        "faults": sum(sum(kinds.values()) for kinds in struck.values()),
        "by_platform_and_kind": {platform: dict(sorted(kinds.items())) for platform, kinds in sorted(struck.items())},
        "too_late_to_strike": sum(sum(trial["skipped"].values()) for trial in trials),
        "searches": len(trials),
        **{name: sum(trial[name] for trial in trials) for name in totals},
        "searches_with_anything_wrong": sum(bool(trial["wrong"]) for trial in trials),
        "wrong": [line for trial in trials for line in trial["wrong"]],
        "orphans": orphans,
    }


def finished(path: Path) -> dict[int, dict[str, Any]]:
    """Trials that an earlier run has finished, by number."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["number"]: line for line in lines}


def main() -> None:
    """Run the trials that are missing, save the table, exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--first", type=int, default=0, help="leave those before it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="trials of this platform only")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing behind
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"seed-{arguments.seed}.jsonl"
    done, graveyard, orphans = finished(path), Graveyard(), []
    probe = Disk(FOLDER / "probe")
    disk_is_real = probe.is_real
    probe.close()
    probe.folder.rmdir()
    for number in range(arguments.first, arguments.trials):
        plan = make_plan(arguments.seed, number, disk_is_real=disk_is_real)
        if number in done or (arguments.only and plan.platform != arguments.only):
            continue
        try:
            done[number] = {"number": number} | run_trial(plan, graveyard)
        except NotStarted as error:
            print(f"trial {number}, {plan.platform}, is left for the next run: {error}", flush=True)
            continue
        orphans += graveyard.look()
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[number]) + "\n")
        shown = {name: done[number][name] for name in ("struck", "skipped", "wrong", "seconds")}
        print(f"trial {number}, {plan.platform}: {shown}", flush=True)
    orphans += graveyard.wait()
    result = summary([done[number] for number in sorted(done)], orphans)
    save("chaos", {"seed": arguments.seed, "real_partition": Wires.possible(), "real_disk": disk_is_real, **result})
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["wrong"] or orphans))


if __name__ == "__main__":
    main()
