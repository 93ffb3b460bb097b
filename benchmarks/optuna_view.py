"""What the Optuna view of a large search costs: written whole, taken up again, and kept up to date.

Question: what does one more candidate cost a live view of 10,000 and of 100,000, and how much memory does it take?
Records are written in bulk (`recorded.py`). CPU seconds and the growth of the peak of memory, in a process of its own.

    python benchmarks/optuna_view.py          # four minutes or more, a gigabyte in the temporary folder
"""

from __future__ import annotations

from common import save
from recorded import large_search, said_by

COUNTS = (10_000, 100_000)
MORE = 10  # candidates that come while the view is live
MEASURE = """
import json, sys, time
from evomerge import optuna_view
import evomerge
took, last = {}, 0.0
def lap(name):
    global last
    now = time.process_time(); took[name], last = round(now - last, 4), now
def peak():
    lines = open("/proc/self/status").read().splitlines()  # what getrusage says begins with the parent's
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
results = evomerge.load("big", storage=sys.argv[1])
path = optuna_view.journal_path(sys.argv[1])
evaluated, hidden = optuna_view._evaluated, int(sys.argv[2])
optuna_view._evaluated = lambda results, split: evaluated(results, split)[: -hidden or None]
before = peak(); lap("imports, record read")
optuna_view._sync(results, optuna_view.Journal(path)); lap("written whole")
after = peak(); journal = optuna_view.Journal(path); last = time.process_time()
optuna_view._sync(results, journal); lap("taken up again")
while hidden > 0:
    hidden -= 1
    optuna_view._sync(results, journal)
lap("with one more candidate")
took["with one more candidate"] = round(took["with one more candidate"] / int(sys.argv[2]), 4)
print(json.dumps({"cpu_seconds": took, "mib_more_when_written": after - before, "mib_more_in_all": peak() - before,
                  "mib_of_the_journal": path.stat().st_size // 2**20}))
"""


def main() -> None:
    """Write both records and their views, save what it cost."""
    rows = []
    for count in COUNTS:
        with large_search(count) as storage:
            rows.append({"candidates": count, **said_by(MEASURE, storage, str(MORE))})
        print(rows[-1], flush=True)
    save("optuna_view", {"rows": rows})


if __name__ == "__main__":
    main()
