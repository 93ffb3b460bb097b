"""What the user can get wrong in a task is said in one clear line, before any model is there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest

from evaluators.errors import TaskError
from evaluators.objective import Objective
from evaluators.tasks import TaskSuite, default_objectives

ONE_LINE = "the message is one line"


def load(settings: Any, task: str, metric: str = "acc", **more: Any) -> TaskSuite:
    return TaskSuite.load([Objective.model_validate({"task": task, "metric": metric, **more})], settings)


def refused(settings: Any, task: str, metric: str = "acc", *, match: str, **more: Any) -> None:
    with pytest.raises(TaskError, match=match) as caught:
        load(settings, task, metric, **more)
    assert "\n" not in str(caught.value), ONE_LINE


def test_loads_tasks_in_order_with_documents(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc", 24)
    tasks.generation("gen", 12)
    suite = TaskSuite.load(
        [
            Objective(task="gen", metric="exact_match"),
            Objective(task="mc"),
            Objective(task="mc", metric="acc_norm,none"),
        ],
        settings(),
    )
    assert suite.tasks == ("gen", "mc")
    assert [len(task.documents) for task in suite.loaded.values()] == [12, 24]
    assert [(measure.metric, measure.filter) for measure in suite.measures] == [
        ("exact_match", "none"),
        ("acc", "none"),
        ("acc_norm", "none"),
    ]


def test_validation_documents_serve_where_there_are_no_test_documents(tasks: Any, settings: Any) -> None:
    rows = [{"q": f"question {i}"} for i in range(5)]
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    tasks.write(
        "ll",
        {"validation": rows},
        output_type="loglikelihood",
        doc_to_text="{{q}}",
        doc_to_target="yes",
        metric_list=metrics,
    )
    assert len(load(settings(), "ll", "perplexity", direction="minimize").loaded["ll"].documents) == 5


def test_the_digest_knows_what_defines_scores(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc")
    digest = load(settings(), "mc").digest
    assert load(settings(), "mc").digest == digest
    assert load(settings(search_documents=3, tokens_per_batch=9), "mc").digest == digest, "these change no score"
    assert load(settings(num_fewshot=1), "mc").digest != digest
    assert load(settings(max_length=77), "mc").digest != digest
    tasks.multiple_choice("mc", 23)
    assert load(settings(), "mc").digest != digest, "another set of documents"
    tasks.multiple_choice("mc", doc_to_text="{{question}}?")
    assert load(settings(), "mc").digest != digest


def test_the_digest_does_not_know_where_files_lie(
    tasks: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.multiple_choice("mc")
    here = load(settings(), "mc").digest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in tasks.folder.iterdir():
        text = path.read_text().replace(str(tasks.folder), str(elsewhere))
        (elsewhere / path.name).write_text(text)
    assert load(settings(include_path=(str(elsewhere),)), "mc").digest == here


def test_the_digest_knows_functions_by_their_source(tasks: Any, settings: Any) -> None:
    path = tasks.multiple_choice("mc")
    path.write_text(path.read_text().replace("doc_to_target: gold", "doc_to_target: !function helper.gold"))
    helper = tasks.folder / "helper.py"
    digests = []
    for body in ("return doc['gold']", "return 0"):
        helper.write_text(f"def gold(doc):\n    {body}\n")
        digests.append(load(settings(trusted_paths=(str(tasks.folder),)), "mc").digest)
    assert digests[0] != digests[1]


def test_nothing_is_left_changed_or_written(tasks: Any, settings: Any, capfd: pytest.CaptureFixture[str]) -> None:
    tasks.multiple_choice("mc", metric_list=[{"metric": "acc"}])  # lm-eval warns: no aggregation given
    logger = logging.getLogger("lm_eval")
    before = (lm_eval.utils.env, lm_eval.api.task.tqdm, logger.level, logger.propagate, list(logger.handlers))
    load(settings(), "mc")
    assert capfd.readouterr() == ("", "")
    assert (lm_eval.utils.env, lm_eval.api.task.tqdm, logger.level, logger.propagate, logger.handlers) == before


def test_default_objective_is_the_first_metric_in_its_own_direction(tasks: Any, settings: Any) -> None:
    brier = {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}
    tasks.multiple_choice("mc", metric_list=[brier])
    assert default_objectives("mc", settings()) == [Objective(task="mc", metric="brier_score", direction="minimize")]
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("one", "two")]
    tasks.generation("gen", filter_list=filters)
    assert default_objectives("gen", settings()) == [Objective(task="gen", metric="exact_match,one")]


def test_no_objective_and_one_twice(settings: Any) -> None:
    with pytest.raises(TaskError, match="objectives is empty"):
        TaskSuite.load([], settings())
    with pytest.raises(TaskError, match="mc/acc is named twice"):
        TaskSuite.load([Objective(task="mc"), Objective(task="mc")], settings())


@pytest.mark.slow
def test_unknown_task_names_those_near_it(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("my_arithmetic")
    refused(settings(), "my_arithmetik", match="'my_arithmetik' is not in .*close to it: my_arithmetic")


@pytest.mark.slow
def test_a_tag_of_lm_eval_is_refused_with_its_members(settings: Any) -> None:
    refused(settings(), "ai2_arc", match="ai2_arc is a tag.*arc_challenge, arc_easy")


def test_unknown_metric_lists_those_there_are(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc")
    refused(settings(), "mc", "exact_match", match="has no metric 'exact_match'; it has: acc, acc_norm, acc_bytes")
    refused(settings(), "mc", "acc,strict", match="has no metric 'acc,strict'")
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "loose")]
    tasks.generation("gen", filter_list=filters)
    refused(settings(), "gen", "exact_match", match="needs a filter: exact_match,strict, exact_match,loose")


def test_a_direction_against_the_task_is_refused(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc")
    refused(settings(), "mc", direction="minimize", match="higher acc is better; write direction: maximize")


def test_unsupported_tasks_are_refused_by_name(tasks: Any, settings: Any) -> None:
    for options, match in (
        ({"do_sample": True}, "samples its answers"),
        ({"do_sample": False, "num_beams": 4}, "generation_kwargs num_beams are not supported"),
    ):
        tasks.generation("gen", generation_kwargs={"until": ["\n"], **options})
        refused(settings(), "gen", "exact_match", match=match)
    tasks.generation("gen", unsafe_code=True)
    refused(settings(), "gen", "exact_match", match="unsafe_code")
    tasks.generation("gen", doc_to_image="picture")
    refused(settings(), "gen", "exact_match", match="images or sound")


def test_a_data_set_that_is_not_there(tasks: Any, settings: Any) -> None:
    path = tasks.multiple_choice("mc")
    (tasks.folder / "mc.test.jsonl").unlink()
    refused(settings(), "mc", match=f"task mc .{path}. cannot be loaded .dataset_path='json'.*mc.test.jsonl")


def test_task_files_that_are_no_tasks(tasks: Any, settings: Any) -> None:
    tasks.raw("listed", "- task: listed\n- output_type: multiple_choice\n")
    refused(settings(), "listed", match="task listed: .*listed.yaml cannot be read: Expected YAML dict")
    tasks.raw("torn", "task: torn\n  output_type: [\n")
    refused(settings(), "torn", match="task torn: .*torn.yaml cannot be read")


def test_include_path_must_be_a_folder(settings: Any, tmp_path: Path) -> None:
    refused(settings(include_path=(str(tmp_path / "no"),)), "mc", match="include_path: .*no' is not a folder")


def test_a_template_error_names_the_task(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc", doc_to_text="{{nothing_of_that_name}}")
    refused(settings(), "mc", match="task mc .*cannot be loaded.*UndefinedError: 'nothing_of_that_name'")


# what a task from a stranger may not do


def test_functions_need_trust(tasks: Any, settings: Any) -> None:
    path = tasks.multiple_choice("mc")
    (tasks.folder / "helper.py").write_text("def gold(doc):\n    return doc['gold']\n")
    path.write_text(path.read_text().replace("doc_to_target: gold", "doc_to_target: !function helper.gold"))
    refused(settings(), "mc", match="mc.yaml uses `!function`, which runs code; .*trusted_paths")
    assert load(settings(trusted_paths=(str(tasks.folder),)), "mc").loaded["mc"].trusted


def test_functions_of_an_included_file_need_trust(tasks: Any, settings: Any, tmp_path: Path) -> None:
    path = tasks.multiple_choice("mc")
    base = tmp_path / "shared.yaml"
    base.write_text("process_docs: !function helper.process\n")
    path.write_text(path.read_text() + f"include: {base}\n")
    refused(settings(), "mc", match="shared.yaml uses `!function`")
    refused(settings(trusted_paths=(str(tasks.folder),)), "mc", match="shared.yaml uses `!function`")


def test_a_trusted_folder_is_no_prefix_of_a_name(tasks: Any, settings: Any) -> None:
    path = tasks.multiple_choice("mc")
    path.write_text(path.read_text().replace("doc_to_target: gold", "doc_to_target: !function helper.gold"))
    refused(settings(trusted_paths=(str(tasks.folder)[:-1],)), "mc", match="`!function`")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("task: bad\nclass: some.Class\n", "`class`"),
        ("task: bad\ncustom_dataset: some.function\n", "`custom_dataset`"),
        ("task: bad\nuse_prompt: 'prompts.yaml:one'\n", "`use_prompt`"),
        ("task: bad\ndataset_path: pandas\n", "`dataset_path: pandas`"),
        ("task: bad\ndoc_to_text: !!python/name:os.system\n", "python/name:os.system|cannot be read"),
        ("task: bad\nmetric_list:\n  - metric: somebody/metric\n", "metric 'somebody/metric'"),
        ("task: bad\nmetric_list:\n  - metric: exact_match\n    hf_evaluate: true\n", "metric 'exact_match'"),
    ],
)
def test_other_ways_to_run_code_need_trust(text: str, match: str, tasks: Any, settings: Any) -> None:
    tasks.raw("bad", text)
    refused(settings(), "bad", match=match)


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.popen('touch FILE').read() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_templates_are_rendered_in_a_sandbox(template: str, tasks: Any, settings: Any, tmp_path: Path) -> None:
    file = tmp_path / "broken-out"
    tasks.multiple_choice("mc", doc_to_text=template.replace("FILE", str(file)))
    refused(settings(), "mc", match="SecurityError")
    assert not file.exists()


def test_templates_that_hide_in_what_is_scored_are_sandboxed_too(
    tasks: Any, settings: Any, tmp_path: Path, tokenizer: Any
) -> None:
    """Some are rendered first when requests are built."""
    from evaluators.encoding import Encoder
    from evaluators.requests import RequestBook

    file = tmp_path / "broken-out"
    attack = "{{ cycler.__init__.__globals__.os.popen('touch FILE').read() }}".replace("FILE", str(file))
    tasks.multiple_choice("mc", description=attack)
    book = RequestBook(load(settings(), "mc"), Encoder(tokenizer, max_length=100))
    with pytest.raises(TaskError, match="SecurityError"):
        book.requests("mc", [0])
    assert not file.exists()
