"""An Optuna study beside the record, as a view: for optuna-dashboard and `optuna.visualization`.

The record decides; the journal file can be deleted at any time and comes back with the next `sync`. Finished trials
cannot change in Optuna, and validation and test come after a trial has been added, so the study's own attributes
`validation` and `test` hold those scores of all candidates; a trial carries those that were known when it was added.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.atomic import alone
from evomerge.errors import BadSearch
from evomerge.optimizers.optuna_quiet import quiet
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results
from evomerge.storage_url import masked, parse
from search_spaces.genes import Genes, without_layers
from search_spaces.mosaic_space import MosaicSpaceSettings, shown_genes
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.path_space import PathSpaceSettings, path_space
from search_spaces.recipe import Source

MOST_PARAMETERS = 50  # every parameter of every trial costs Optuna and its dashboard time
LATER_SPLITS: tuple[Split, ...] = ("validation", "test")
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


def sync(results: Results) -> Path:
    """Bring the study of a search up to date with its record; return the journal's path.

    One finished trial per candidate that was measured on search documents or failed there; those that are there
    already are left alone. A journal that cannot be read is made anew, with all searches of the database.

    Raises:
        OSError: the journal cannot be written.
    """
    path = journal_path(results.record.store.storage)
    # The system frees this lock when a process dies; Optuna's own stays behind.
    with alone(path.with_name(f"{path.name}.sync")), quiet(verbosity=optuna.logging.WARNING):
        _cut_torn_line(path)
        try:
            _write(path, results)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged journal makes Optuna raise
            _log.warning("%s cannot be read (%s); it is made anew from the record", path, error)
            path.unlink()
            _write(path, results)
            for row in results.record.store.searches():
                if row.name != results.record.name:
                    _write(path, Results.of(results.record.store.search(row.name)))
    return path


class _Batch(BaseJournalBackend):
    """A journal that keeps what is written until `flush`, so that a sync costs one write."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFileBackend(str(path))
        self._in_file: int | None = None
        self._fresh: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the entries from one number on: those of the file as first read, then those not yet written."""
        if self._in_file is None:
            entries = list(self._file.read_logs(0))
            self._in_file = len(entries)
            yield from entries[log_number_from:]
        yield from self._fresh[max(0, log_number_from - self._in_file) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep ``logs``."""
        self._fresh += logs

    def flush(self) -> None:
        """Write what was kept."""
        if self._fresh:
            self._file.append_logs(self._fresh)


def _write(path: Path, results: Results) -> None:
    batch = _Batch(path)
    storage = JournalStorage(batch)
    study = _study(storage, results)
    there = {trial.user_attrs.get("candidate") for trial in study.get_trials(deepcopy=False)}
    describe = _Parameters(results)
    for candidate in results.candidates:
        if "search" in candidate.evaluations and candidate.number not in there:
            study.add_trial(_trial(results, candidate, describe))
    for split in LATER_SPLITS:
        scores = {str(c.number): _scores(results, c, split) for c in results.candidates if split in c.evaluations}
        if study.user_attrs.get(split, {}) != scores:
            study.set_user_attr(split, scores)
    batch.flush()


def _study(storage: JournalStorage, results: Results) -> optuna.Study:
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


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end: Optuna would append to it and never read it again."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    start = data.rfind(b"\n", 0, max(whole - 1, 0)) + 1
    if whole and not _is_json(data[start:whole]):
        whole = start
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
