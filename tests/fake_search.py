"""Searches on fakes, from the start to the end or to the death of their driver."""

from contextlib import closing, contextmanager

from fakes import FakeSpec, problem

from cluster.in_process import InProcessPool
from evomerge.dispatch import Dispatcher
from evomerge.losses import Losses
from evomerge.optimizers.registry import make_optimizer
from evomerge.results import Results
from evomerge.search import Search
from evomerge.selection import conclude
from evomerge.store import Store
from evomerge.watcher import Silent


class Stop(Exception):
    """Stands for the death of the driver."""


class DieAfter(Silent):
    """Kills the driver after some evaluations came back, right after the record has them."""

    def __init__(self, count):
        self.count = count

    def evaluated(self, candidate, split):
        self.count -= 1
        if self.count == 0:
            raise Stop


@contextmanager
def started(file, spec=None, watcher=None, pool=None):
    spec = spec or FakeSpec()
    this = problem(file)
    store = Store(file.storage, create=True)
    record = store.find(file.name) or store.create(file.name, file=file.model_dump(mode="json"), plan=this.plan())
    optimizer = make_optimizer(file.optimizer, this.setting())
    with closing(pool or InProcessPool(spec, workers=file.cluster.workers)) as pool, closing(store):
        dispatcher = Dispatcher(pool, timeout_seconds=30, losses=Losses(record))
        yield Search(this, record, optimizer, dispatcher, watcher or Silent())


def finish(file, spec=None, watcher=None):
    """Run or continue the search of ``file`` to its end on a fake worker."""
    with started(file, spec, watcher) as search:
        search.run()
        conclude(search)
        return Results.of(search.record)


def genomes(results):
    return [candidate.genome for candidate in results.candidates if candidate.origin == "optimizer"]
