"""All candidates and document scores as tables, read back by other programs' readers."""

import json

import numpy as np
import pandas as pd
import pytest

from evaluators.evaluation import Cost, Evaluation, FailureKind, Score, Stop
from evomerge.errors import UserMistake
from evomerge.records import Split
from evomerge.tabular import write_tables
from search_spaces.seeds import single_coefficient

READ = {"csv": pd.read_csv, "parquet": pd.read_parquet}
TASK = "gsm8k_ja"
NAME = f"{TASK}/acc"


def read(results, folder, kind):
    write_tables(results, folder, kind)
    assert sorted(path.name for path in folder.iterdir()) == [f"candidates.{kind}", f"documents.{kind}"]
    return (READ[kind](folder / f"{table}.{kind}") for table in ("candidates", "documents"))


@pytest.mark.parametrize("kind", READ)
def test_tables_hold_what_the_record_holds(finished, tmp_path, kind):
    results = finished.results
    candidates, documents = read(results, tmp_path / "tables", kind)
    assert len(candidates) == len(results.candidates)
    by_candidate = dict(tuple(documents[documents.objective == NAME].groupby(["candidate", "split"], observed=True)))
    for candidate, row in zip(results.candidates, candidates.to_dict("records"), strict=True):
        about = (candidate.number, candidate.origin, candidate.state, candidate.recipe_digest)
        assert (row["number"], row["origin"], row["state"], row["recipe_digest"]) == about
        assert json.loads(row["parents"]) == list(candidate.parents)
        assert row["front"] == (candidate in results.front)
        assert row["winner"] == (candidate == results.winner)
        genes = [row[f"gene:{name}"] for name in results.record.row.plan["genes"]]
        np.testing.assert_array_equal(
            genes, candidate.genome.values if candidate.genome else np.full(len(genes), np.nan)
        )
        for split in ("search", "validation", "test"):
            check_evaluation(results, candidate, split, row, by_candidate)


def check_evaluation(results, candidate, split: Split, row, by_candidate):
    evaluation = candidate.evaluations.get(split)
    if evaluation is None:
        assert pd.isna(row[f"{split}:{NAME}"])
        assert pd.isna(row[f"{split}:seconds"])
        return
    assert row[f"{split}:seconds"] == evaluation.cost.seconds
    if evaluation.failure:
        assert row[f"{split}:failure"] == evaluation.failure.kind.value
        assert row[f"{split}:message"] == evaluation.failure.message
        assert (candidate.number, split) not in by_candidate
        return
    measured = evaluation.scores[NAME]
    assert (row[f"{split}:{NAME}"], row[f"{split}:{NAME}:se"]) == (measured.value, measured.standard_error)
    mine = by_candidate[candidate.number, split]
    np.testing.assert_array_equal(mine.score, results.record.document_scores(evaluation, NAME))
    assert mine.document.tolist() == results.record.row.plan["documents"][split][TASK]
    assert mine.position.tolist() == list(range(len(mine)))


def test_a_stopped_candidate_has_the_documents_that_it_saw(make_search, tmp_path):
    search = make_search(objectives=[{"task": TASK}])
    candidate = search.record.add_candidate(0, single_coefficient(search.space, 0.5), origin="baseline")
    seen = Score(0.4, 0.1, np.array([1.0, 0.0, 1.0]))
    stop = Stop(documents=3, of=120, rival=0, chance=0.01, par=())
    outcome = Evaluation(search.documents["search"].digest, {NAME: seen}, {}, Cost(), stopped=stop)
    search.measure(candidate, "search", outcome)
    candidates, documents = read(search.results, tmp_path / "tables", "parquet")
    assert candidates.state.tolist() == ["stopped"]
    assert tuple(documents.document) == search.documents["search"].ids[TASK][:3]
    assert documents.score.tolist() == [1.0, 0.0, 1.0]


def test_a_candidate_on_a_minibatch_has_the_documents_of_that_part(make_search, tmp_path):
    search = make_search(objectives=[{"task": TASK}], evaluation={"minibatches": 4})
    stop = Stop(documents=30, of=120, rival=None, chance=None, par=(), minibatch=2)
    for number, stopped in enumerate((stop, None)):
        candidate = search.record.add_candidate(number, single_coefficient(search.space, 0.5), origin="baseline")
        seen = Score(0.4, 0.1, np.ones(30 if stopped else 120))
        outcome = Evaluation(search.documents["search"].digest, {NAME: seen}, {}, Cost(), stopped=stopped)
        search.measure(candidate, "search", outcome)
    _, documents = read(search.results, tmp_path / "tables", "parquet")
    ids = search.documents["search"].ids[TASK]
    assert tuple(documents.document[documents.candidate == 0]) == ids[60:90]
    assert tuple(documents.document[documents.candidate == 1]) == ids


def test_documents_of_a_group_have_positions_only(make_search, tmp_path):
    search = make_search(objectives=[{"task": "group"}])
    search.documents = {split: type(d)({"part": (0, 1)}) for split, d in search.documents.items()}
    search.record.store.create("grouped", file=search.record.row.file | {"name": "grouped"}, plan=search._plan())
    search.record = search.record.store.search("grouped")
    search.file = search.file.model_copy(update={"name": "grouped"})
    search.add_seeds()
    _, documents = read(search.results, tmp_path / "tables", "parquet")
    assert len(documents)
    assert documents.document.isna().all()
    assert documents.position.max() == 119


def test_a_search_without_candidates_has_empty_tables(make_search, tmp_path):
    for table in read(make_search().results, tmp_path / "tables", "parquet"):
        assert len(table) == 0
        assert len(table.columns) > 5


def test_hostile_texts_stay_texts(make_search, tmp_path):
    search = make_search()
    name = 'a "quoted", two-\nline <b>name</b>'
    search.add(single_coefficient(search.space, 0.5), origin="baseline", name=name, failure=FailureKind.EXCEPTION)
    candidates, _ = read(search.results, tmp_path / "tables", "csv")
    assert candidates["name"].tolist() == [name]


def test_a_folder_with_files_is_refused_and_left_alone(finished, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserMistake, match="exists already"):
        write_tables(finished.results, tmp_path, "csv")
    assert [path.name for path in tmp_path.iterdir() if "evomerge" not in path.name] == ["notes"]
