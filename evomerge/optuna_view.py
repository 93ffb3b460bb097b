"""An Optuna study beside the record, as a view: for optuna-dashboard and `optuna.visualization`.

The record decides; the journal file can be deleted at any time and comes back with the next `sync`. Finished trials
cannot change in Optuna, and validation and test come after a trial has been added, so the study's own attributes
`validation` and `test` hold those scores of all candidates; a trial carries those that were known when it was added.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from evaluators.errors import one_line
from evomerge.atomic import alone
from evomerge.columns import NONE
from evomerge.errors import BadSearch, EvomergeError, NotEnoughRoom
from evomerge.optimizers.optuna_quiet import quiet
from evomerge.optuna_journal import Journal
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results
from evomerge.storage_url import masked, parse, without_passwords
from evomerge.store import SearchRecord
from evomerge.targets import shown
from search_spaces.genes import Genes, without_layers
from search_spaces.mosaic_space import MosaicSpaceSettings, shown_genes
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.path_space import PathSpaceSettings, path_space
from search_spaces.recipe import Source

MOST_PARAMETERS = 50  # every parameter of every trial costs Optuna and its dashboard time
LATER_SPLITS: tuple[Split, ...] = ("validation", "test")
EVERY_SECONDS = 5.0  # how often a view that is live looks for something new
SHARE = 0.05  # of the time that it may take
AT_ONCE = 1000  # trials that Optuna holds, 25 kB each, while they are written to a journal
CREATED = "search created"  # tells a search from an older one of the same name

_log = logging.getLogger(__name__)


def journal_path(storage: str) -> Path:
    """Return where the view of the database ``storage`` is kept: beside a SQLite file, else in the current folder.

    Raises:
        BadSearch: the database has no name of its own (SQLite in memory).
    """
    database = parse(storage).database
    if not database or database == ":memory:":
        raise BadSearch(f"storage {masked(storage)}: an Optuna view needs a database with a name")
    path = Path(database)
    return path.with_name(f"{path.stem}.optuna.journal")


def sync(results: Results, path: Path | None = None) -> Path:
    """Bring the study of a search up to date with its record; return the journal's path.

    One finished trial per candidate that was measured on search documents or failed there; those that are there
    already are left alone. A journal that cannot be read is made anew, with all searches of the database.

    Args:
        path: of the journal; by default `journal_path` of the record.

    Raises:
        OSError: the journal cannot be written.
    """
    path = path or journal_path(results.record.store.storage)
    with quiet(verbosity=optuna.logging.WARNING):
        _sync(results, Journal(path))
    return path


def complete(results: Results, *, say: Callable[[str], None]) -> None:
    """Bring the view beside the record up to date at the end of a search.

    Raises:
        NotEnoughRoom: it cannot be written.
    """
    say("writing the Optuna view")
    try:
        sync(results)
    except OSError as error:  # the record is whole, and the same command tries again
        raise NotEnoughRoom(f"the Optuna view cannot be written: {error}; make room and run it again") from None


def export_study(results: Results, to: str) -> None:
    """Write the study of a search, or what is new of it, to a journal file or a database that Optuna opens.

    A database takes about 50 ms a trial, a journal less than 1 ms.

    Raises:
        UserMistake: it cannot be written.
    """
    try:
        if "://" not in to:
            sync(results, Path(to))
            return
        with quiet(verbosity=optuna.logging.WARNING):
            _write_database(RDBStorage(parse(to).render_as_string(hide_password=False)), results)
    except EvomergeError:
        raise
    except Exception as error:  # every database has errors of its own
        text = without_passwords(one_line(error), parse(to)) if "://" in to else one_line(error)
        raise BadSearch(f"{shown(to)}: cannot be written: {text}") from None


class Live:
    """Keeps the study of a running search up to date, in a thread that takes at most `SHARE` of the time.

    What it cannot write is left to the `sync` at the end of the search, which says so.
    """

    def __init__(self, record: SearchRecord) -> None:
        """Follow ``record`` from now on.

        Raises:
            BadSearch: there is no place for a journal.
        """
        self._record, self._path = record, journal_path(record.store.storage)
        self._news, self._closing = threading.Event(), threading.Event()
        self._quiet = ExitStack()  # here, since what it sets is the whole process's
        self._quiet.enter_context(quiet(verbosity=optuna.logging.WARNING))
        self._thread = threading.Thread(target=self._work, name="optuna-view", daemon=True)
        self._thread.start()

    def phase(self, name: str, total: int, done: int) -> None:
        """Nothing to do."""

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Take note that there is something new."""
        self._news.set()

    def close(self) -> None:
        """Stop, after the sync that may be going on."""
        self._closing.set()
        self._thread.join()
        self._quiet.close()

    def _work(self) -> None:
        try:
            results, journal, pause = Results.of(self._record), Journal(self._path), EVERY_SECONDS
            while not self._closing.wait(pause):
                if not self._news.is_set():
                    continue
                self._news.clear()
                started = time.monotonic()
                results = results.newer()
                _sync(results, journal)
                pause = max(EVERY_SECONDS, (time.monotonic() - started) / SHARE)
        except Exception as error:  # whatever the disk, the database or Optuna makes of it
            _log.warning("the Optuna view is not live any more: %s", one_line(error))


def _sync(results: Results, journal: Journal) -> None:
    path = journal.path
    # The system frees this lock when a process dies; Optuna's own stays behind.
    with alone(path.with_name(f"{path.name}.sync")):
        try:
            _write_journal(journal, results)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged journal makes Optuna raise
            _log.warning("%s cannot be read (%s); it is made anew from the record", path, error)
            path.unlink()
            _write_journal(journal, results)
            for row in results.record.store.searches():
                if row.name != results.record.name:
                    _write_journal(journal, Results.of(results.record.store.search(row.name)))


def _write_journal(journal: Journal, results: Results) -> None:
    journal.read()
    study = _study(journal.storage(), results)
    there = journal.candidates(study._study_id)
    missing = [number for number in _evaluated(results, "search") if number not in there]
    for start in range(0, len(missing), AT_ONCE):  # Optuna keeps what it writes
        _add_trials(_study(journal.storage(), results), results, missing[start : start + AT_ONCE])
        journal.flush()
    _set_later_scores(_study(journal.storage(), results), results)
    journal.flush()


def _write_database(storage: BaseStorage, results: Results) -> None:
    study = _study(storage, results)
    there = {trial.user_attrs.get("candidate") for trial in study.get_trials(deepcopy=False)}
    _add_trials(study, results, [number for number in _evaluated(results, "search") if number not in there])
    _set_later_scores(study, results)


def _add_trials(study: optuna.Study, results: Results, numbers: Sequence[int]) -> None:
    describe = _Parameters(results)
    for candidate in results.candidates.each(numbers):
        study.add_trial(_trial(results, candidate, describe))


def _set_later_scores(study: optuna.Study, results: Results) -> None:
    """Give the study the validation and test scores of all its candidates."""
    for split in LATER_SPLITS:
        measured = results.candidates.each(_evaluated(results, split))
        scores = {str(candidate.number): _scores(results, candidate, split) for candidate in measured}
        if study.user_attrs.get(split, {}) != scores:
            study.set_user_attr(split, scores)


def _evaluated(results: Results, split: Split) -> list[int]:
    """Numbers of the candidates with an evaluation on ``split``, whatever it gave."""
    return np.flatnonzero(results.candidates.latest(split) != NONE).tolist()


def _study(storage: BaseStorage, results: Results) -> optuna.Study:
    name = results.record.name
    if name in {study.study_name for study in storage.get_all_studies()}:
        study = optuna.load_study(study_name=name, storage=storage)
        if study.user_attrs.get(CREATED) == results.record.row.created:
            return study
        optuna.delete_study(study_name=name, storage=storage)
    directions = [objective.direction for objective in results.objectives]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    study.set_metric_names(list(results.chooser.names))
    study.set_user_attr(CREATED, results.record.row.created)
    return study


def _trial(results: Results, candidate: CandidateRecord, parameters: _Parameters) -> FrozenTrial:
    evaluation = candidate.evaluations["search"]
    values = candidate.values("search", results.chooser.names)
    about: dict[str, Any] = {
        "candidate": candidate.number,
        "origin": candidate.origin,
        "label": candidate.label,
        "recipe": candidate.recipe_digest,
    }
    if evaluation.failure:
        about |= {"failure": evaluation.failure.kind.value, "message": evaluation.failure.message}
    for split in LATER_SPLITS:
        if split in candidate.evaluations:
            about[split] = _scores(results, candidate, split)
    if evaluation.stopped:
        about["stopped after documents"] = evaluation.stopped.documents
    named = parameters.named(candidate)
    unmeasured = TrialState.PRUNED if evaluation.stopped else TrialState.FAIL
    trial = create_trial(
        state=TrialState.COMPLETE if values is not None else unmeasured,
        values=None if values is None else values.tolist(),
        params=named,
        distributions={name: parameters.distributions[name] for name in named},
        user_attrs=about,
    )
    trial.datetime_start = datetime.fromtimestamp(candidate.created)
    trial.datetime_complete = datetime.fromtimestamp(evaluation.created)
    return trial


def _scores(results: Results, candidate: CandidateRecord, split: Split) -> dict[str, float]:
    values = candidate.values(split, results.chooser.names)
    return {} if values is None else dict(zip(results.chooser.names, values.tolist(), strict=True))


class _Parameters:
    """What a trial shows of a genome: every gene by name, or where these are many, means over layers."""

    def __init__(self, results: Results) -> None:
        plan = results.record.row.plan
        settings = results.file.space
        if isinstance(settings, MosaicSpaceSettings):
            genes = shown_genes(plan["genes"])
        else:
            sources = tuple(Source.model_validate(source) for source in plan["sources"])
            genes = _genes(settings, sources, tuple(plan["expert_names"]), plan["layers"])
        keys = list(genes.names)
        if len(genes) > MOST_PARAMETERS and not isinstance(settings, MosaicSpaceSettings):
            keys = [f"mean {without_layers(name)}" for name in genes.names]
        self._names = list(dict.fromkeys(keys))
        self._group = np.array([self._names.index(key) for key in keys])
        firsts = [keys.index(name) for name in self._names]
        self._low, self._high = genes.low[firsts], genes.high[firsts]
        self.distributions: Mapping[str, BaseDistribution] = {
            name: FloatDistribution(float(low), float(high))
            for name, low, high in zip(self._names, self._low, self._high, strict=True)
        }

    def named(self, candidate: CandidateRecord) -> dict[str, float]:
        """Return parameters by name; nothing for a candidate without a genome."""
        if candidate.genome is None:
            return {}
        means = np.bincount(self._group, weights=candidate.genome.values) / np.bincount(self._group)
        # A mean of equal numbers at a bound may leave it by a rounding.
        return dict(zip(self._names, np.clip(means, self._low, self._high).tolist(), strict=True))


def _genes(
    settings: ParameterSpaceSettings | PathSpaceSettings,
    sources: tuple[Source, ...],
    names: tuple[str, ...],
    layers: int,
) -> Genes:
    if isinstance(settings, ParameterSpaceSettings):
        return ParameterSpace(settings, sources, names, layers).genes
    return path_space(settings, sources=sources, expert_names=names, layers=layers).genes
