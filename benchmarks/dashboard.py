"""What reading a large record costs: status, front, and everything that the first load of the dashboard asks for.

Question: do status and front of a search with 100,000 candidates take less than 2 s, and does what the server does for
the dashboard's first load stay below 2 s with 10,000 and 5 s with 100,000? Records are written in bulk
(`recorded.py`) and read by a process of its own. CPU seconds, since the wall clock of a shared machine drifts; the
browser's own time is not in them.

    python benchmarks/dashboard.py            # about three minutes, half a gigabyte in the temporary folder
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, save
from recorded import write_search

COUNTS = (10_000, 100_000)
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
callbacks.front(results, "plane", results.chooser.names).to_json(); lap("figure of the front")
from evomerge.figures import progress_figure
progress_figure(results).to_json(); lap("figure of the course")
parts.candidate_card(results, results.front[0], dark=False); lap("candidate")
sections.costs(results, None, dark=False); lap("costs")
print(json.dumps(took))
"""


def main() -> None:
    """Write both records, read each, save."""
    rows = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            storage = f"sqlite:///{Path(folder) / 'evomerge.db'}"
            write_search(storage, "big", count)
            done = subprocess.run(
                [sys.executable, "-c", READ, storage], cwd=ROOT, capture_output=True, text=True, check=True
            )
        took = json.loads(done.stdout)
        rows.append({"candidates": count, "cpu_seconds": took})
        print(count, took, flush=True)
    save("dashboard", {"rows": rows})


if __name__ == "__main__":
    main()
