"""Running a search here: from a search file to a finished record, and again after any interruption."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cluster.fair_shares import room
from cluster.pool import Pool
from evomerge.config import BaselineSettings, ClusterSettings, SearchFile
from evomerge.dispatch import Dispatcher
from evomerge.errors import BadSearch, NotEnoughRoom
from evomerge.hybrid import first_step, second_step
from evomerge.inspection import INSPECTION
from evomerge.loggers.watcher import logged
from evomerge.losses import Losses
from evomerge.merging.placement import Devices, gpu_names
from evomerge.optimizers.choice import Choice, resolve
from evomerge.optimizers.registry import make_optimizer
from evomerge.optimizers.settings import Algorithm, RandomSettings
from evomerge.problem import CHOSEN_OPTIMIZER, MERGES, MOMENTS, Problem, check_unchanged, prepare
from evomerge.results import Results
from evomerge.search import Listener, Search
from evomerge.selection import conclude
from evomerge.store import SearchRecord, Store
from evomerge.watcher import Several, Silent, Watcher
from search_spaces.courses import Moments
from search_spaces.path_space import HybridSettings
from search_spaces.recipe import Blocks, Merge

if TYPE_CHECKING:
    from cluster.ray_session import RaySession

WORKER_OVERHEAD_BYTES = 256 * 2**20  # above one copy of the model
IMPORTS_BYTES = 600 * 2**20  # torch, transformers and lm-eval in one process


@dataclass(frozen=True)
class Machine:
    """What workers of a search run on: this machine, or the cluster that RAY_ADDRESS names.

    Attributes:
        device: where a worker's model lies, or several devices that it is spread over.
        workers: how many; on a cluster as many as its nodes have room for.
        gpus: what each worker reserves.
    """

    device: Devices
    workers: int
    threads: int
    gpus: float = 0.0


def run(file: SearchFile, *, watcher: Watcher | None = None) -> Results:
    """Run or continue the search of ``file`` until its budget is spent and its winner measured.

    With `baselines.random_search` a random search of the same budget follows, under the name ``NAME.random``. A hybrid
    search is preceded by one of its merge, ``NAME.first``.

    Raises:
        UserMistake, ValueError: what is wrong, on one line; nothing that was measured is lost.
    """
    with logged(watcher or Silent(), file.logging) as told:
        return _run(file, told)


def _run(file: SearchFile, watcher: Watcher) -> Results:
    store = Store(file.storage, create=True)
    first = None
    if isinstance(file.space, HybridSettings):
        first = _first_merge(file, store, watcher)
        file = second_step(file)
    files = [file, random_variant(file)] if file.baselines.random_search else [file]
    with ExitStack() as stack:
        for each in files:
            stack.enter_context(store.driving(each.name))
        problem = prepare(file, say=watcher.say, first=first, moments=_recorded_moments(store, file.name))
        if _on_cluster(file.cluster):
            stack.enter_context(join_cluster())
        machine = find_machine(file.cluster, problem)
        records = [open_record(store, replace(problem, file=each)) for each in files]
        at_most = "at most " if _on_cluster(file.cluster) else ""
        watcher.say(f"starting {at_most}{machine.workers} worker{'s' if machine.workers > 1 else ''}")
        pool = stack.enter_context(open_pool(file.cluster, problem, machine, name=_pool_name(records[0])))
        for each, record in zip(files, records, strict=True):
            drive(replace(problem, file=each), record, pool, watcher)
    return Results.of(store.search(file.name))


def _first_merge(file: SearchFile, store: Store, watcher: Watcher) -> Merge:
    """Return what the first step of a hybrid search found; run it, unless the second one has begun with its result."""
    record = store.find(file.name)
    if record is not None:
        if MERGES not in record.row.plan:
            raise BadSearch(f"search {file.name!r} exists and is not hybrid; give this one another name")
        return Blocks.model_validate(record.row.plan[MERGES][0])
    winner = run(first_step(file), watcher=watcher).winner
    if winner is None or not isinstance(winner.recipe.body, Blocks):
        raise BadSearch(f"search {file.name}.first has no winner to continue from; `evomerge status` shows why")
    return winner.recipe.body


def _recorded_moments(store: Store, name: str) -> Moments | None:
    """Return the second moments that a search began with: measured again, on another machine, they might differ."""
    record = store.find(name)
    found = record.row.plan.get(MOMENTS) if record is not None else None
    return tuple(map(tuple, found)) if found else None


def random_variant(file: SearchFile) -> SearchFile:
    """Return the random search that ``file`` is compared with."""
    return file.model_copy(
        update={
            "name": f"{file.name}.random",
            "optimizer": RandomSettings(seed=file.optimizer.seed),
            "baselines": BaselineSettings(single_coefficient=0, random_search=False),
            "evaluation": file.evaluation.model_copy(update={"minibatches": None}),  # it has no generations
        }
    )


def open_record(store: Store, problem: Problem) -> SearchRecord:
    """Return the record of the search of ``problem``: a new one, or one that can be continued.

    Raises:
        BadSearch: what is recorded is another search.
    """
    record = store.find(problem.file.name)
    if record is None:
        return store.create(problem.file.name, file=problem.file.model_dump(mode="json"), plan=plan_to_record(problem))
    check_unchanged(problem, record.row.file, record.row.plan)
    record.update_file(problem.file.model_dump(mode="json"))
    return store.search(problem.file.name)


def plan_to_record(problem: Problem) -> dict[str, Any]:
    """Return the plan of a new search, with what the experts are like and the optimizer that `auto` stands for."""
    choice = problem.choice()
    known = {INSPECTION: problem.inspection.record()}
    return problem.plan() | known | ({CHOSEN_OPTIMIZER: choice._asdict()} if choice else {})


def optimizer_settings(record: SearchRecord, file: SearchFile) -> Algorithm:
    """Return the optimizer of a recorded search: what ``file`` names, or what was chosen when it began."""
    chosen = record.row.plan.get(CHOSEN_OPTIMIZER)
    return resolve(file.optimizer, Choice(**chosen) if chosen else None)


def drive(problem: Problem, record: SearchRecord, pool: Pool, watcher: Watcher) -> None:
    """Run or continue one search on the workers of ``pool`` until its winner is measured."""
    from evomerge import crews, optuna_view
    from evomerge.metrics import SearchMetrics

    optimizer = make_optimizer(optimizer_settings(record, problem.file), problem.setting())
    dispatcher = Dispatcher(pool, timeout_seconds=problem.longest_seconds, losses=Losses(record))
    watcher.search_begins(record, problem.file)
    listeners: list[Listener] = [watcher]
    if (meters := getattr(pool, "meters", None)) is not None:
        metrics = SearchMetrics(meters, record, problem.file, dispatcher)
        dispatcher.every_few_seconds(metrics.send)
        listeners.append(metrics)
    with crews.kept(record, dispatcher, watcher.say), closing(optuna_view.Live(record)) as view:
        search = Search(problem, record, optimizer, dispatcher, Several([*listeners, view]))
        watcher.say(f"the search stops: {search.run()}")
        conclude(search)
    optuna_view.complete(Results.of(record), say=watcher.say)


def find_machine(cluster: ClusterSettings, problem: Problem) -> Machine:
    """Return what the workers of ``problem`` run on.

    Raises:
        NotEnoughRoom: that many workers would not fit into this machine's memory.
        BadSearch: there is no cluster where RAY_ADDRESS says.
    """
    threads = max(1, int(cluster.cpus_per_worker))
    if _on_cluster(cluster):
        with join_cluster() as session:
            gpus = _gpus_per_worker(cluster, session.offered().get("GPU", 0.0))
            most = session.capacity({"CPU": cluster.cpus_per_worker, "GPU": gpus})
        workers = most if cluster.workers == "auto" else min(most, cluster.workers)
        return Machine(_device(gpus), max(1, workers), threads, gpus)
    import torch

    there = torch.cuda.device_count()
    gpus = _gpus_per_worker(cluster, there)
    if gpus > max(1, there):
        raise BadSearch(f"cluster.gpus_per_worker: {gpus:g} GPUs for each worker, but {there} are here; ask for less")
    if cluster.workers != "auto":
        workers = cluster.workers
    elif cluster.backend == "in_process":
        workers = 1
    elif gpus:
        workers = max(1, room({"GPU": there}, {"GPU": gpus}))
    else:
        workers = max(1, int(len(os.sched_getaffinity(0)) / cluster.cpus_per_worker))
    if gpus > 1.0 and cluster.backend == "in_process" and workers > 1:
        raise BadSearch(
            f"cluster.workers: {workers} workers of one process would share the same {gpus:g} GPUs; "
            "ask for one, or for backend: ray"
        )
    machine = Machine(_device(gpus if there else 0.0), workers, threads, gpus)
    _check_memory(problem, machine)
    return machine


def _on_cluster(cluster: ClusterSettings) -> bool:
    return cluster.backend == "ray" and "RAY_ADDRESS" in os.environ


def _device(gpus: float) -> Devices:
    """Return where the model of a worker lies that reserves so many GPUs, by the numbers that the worker sees."""
    if gpus > 1.0:
        return gpu_names(gpus)
    return "cuda" if gpus else "cpu"


def _gpus_per_worker(cluster: ClusterSettings, there: float) -> float:
    if cluster.gpus_per_worker is None:
        return 1.0 if there else 0.0
    return cluster.gpus_per_worker


@contextmanager
def join_cluster() -> Iterator[RaySession]:
    """Open the connection to the cluster that RAY_ADDRESS names; pools share it.

    Raises:
        BadSearch: there is none.
    """
    from cluster.ray_session import RaySession

    try:
        session = RaySession()
    except (ValueError, ConnectionError) as error:
        raise BadSearch(f"RAY_ADDRESS: {str(error).removeprefix('address: ')}") from None
    with session:
        yield session


def worker_bytes(problem: Problem, machine: Machine) -> int:
    """Return the private memory of one worker above its imports, in bytes; what is on GPUs is not in it."""
    here = problem.copies * problem.model_bytes if machine.device == "cpu" else 0
    return here + WORKER_OVERHEAD_BYTES


def _check_memory(problem: Problem, machine: Machine) -> None:
    from evomerge.merging.resident import available_bytes

    needed = machine.workers * (worker_bytes(problem, machine) + IMPORTS_BYTES)
    available = available_bytes()
    if needed > available:
        raise NotEnoughRoom(
            f"cluster.workers: {machine.workers} workers need {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available; ask for fewer workers"
        )


def _pool_name(record: SearchRecord) -> str:
    """Return a name that only the driver of this search gives its pool, and the next one again if it dies."""
    return hashlib.sha256(f"{record.name} {record.row.created!r}".encode()).hexdigest()


@contextmanager
def open_pool(cluster: ClusterSettings, problem: Problem, machine: Machine, *, name: str) -> Iterator[Pool]:
    """Start the workers of a search, and stop them at the end; ``name`` is what the cluster knows them by."""
    spec = problem.worker_spec(device=machine.device, threads=machine.threads)
    pool: Pool
    if cluster.backend == "in_process":
        from cluster.in_process import InProcessPool

        pool = InProcessPool(spec, workers=machine.workers)
    else:
        from cluster.ray_pool import RayPool

        try:
            pool = RayPool(
                spec,
                workers=cluster.workers if _on_cluster(cluster) else machine.workers,
                cpus_per_worker=cluster.cpus_per_worker,
                gpus_per_worker=machine.gpus,
                name=name,
            )
        except ValueError as error:  # no node has room for such a worker
            raise BadSearch(f"cluster: {error}") from None
    try:
        yield pool
    finally:
        pool.close()
