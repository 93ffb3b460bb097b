"""What reading a large record costs: status, front, and the first load of the dashboard, in server and browser.

Question: do status and front of a search with 100,000 candidates take less than 2 s, and is the front drawn in a
browser within 2 s of the first visit with 10,000 candidates, within 5 s with 100,000? Records are written in bulk
(`recorded.py`). What the server does is counted in CPU seconds of a process of its own; what the browser shows, in
seconds of its own clock (`browser.py`), least, median and most of several first visits. These are wall time: run it on
an idle machine.

    python benchmarks/dashboard.py            # about five minutes, half a gigabyte in the temporary folder
"""

from __future__ import annotations

import statistics

from browser import first_load
from common import save
from recorded import large_search, said_by

COUNTS = (10_000, 100_000)
VISITS = 5
READ = """
import json, sys, time
took, last = {}, time.process_time()
def lap(name):
    global last
    now = time.process_time(); took[name], last = round(now - last, 3), now
import evomerge
from evomerge import tables
from evomerge.results import Results
lap("imports")
results = evomerge.load("big", storage=sys.argv[1]); lap("read")
results.front; lap("front")
tables.status_lines(results); lap("status")
results.newer(); lap("read again, nothing new")
from evomerge.dashboard import callbacks, parts, sections
from evomerge.dashboard.live import Live
lap("imports of the dashboard")
live = Live(sys.argv[1]); callbacks.page(live, "/search/big"); lap("page, read anew")
results = live.results("big"); parts.headline(results); lap("headline")
figure = callbacks.front(results, "plane", results.chooser.names); figure.to_json(); lap("figure of the front")
from evomerge.figures import progress_figure
progress_figure(results).to_json(); lap("figure of the course")
parts.candidate_card(results, results.front[0], dark=False); lap("candidate")
sections.costs(results, None, dark=False); lap("costs")
points = sum(len(trace.x) for trace in figure.data if trace.visible != "legendonly")
print(json.dumps({"cpu_seconds": took, "points": points}))
"""


def main() -> None:
    """Write both records, read each, look at each, save."""
    rows = []
    for count in COUNTS:
        with large_search(count) as storage:
            row = {"candidates": count, **said_by(READ, storage)}
            row["browser_seconds"] = _looked_at(storage, row["points"])
        rows.append(row)
        print(row, flush=True)
    save("dashboard", {"visits": VISITS, "rows": rows})


def _looked_at(storage: str, points: int) -> dict[str, list[float]]:
    """Seconds by what is there then: least, median and most of several first visits."""
    each: dict[str, list[float]] = {}
    for _ in range(VISITS):
        for path, last in (("/", "list"), ("/search/big", "whole page")):
            for name, seconds in first_load(storage, path, points=points, until=last).items():
                each.setdefault(name, []).append(seconds)
    return {name: [min(times), statistics.median(times), max(times)] for name, times in each.items()}


if __name__ == "__main__":
    main()
