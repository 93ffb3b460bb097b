import json

import numpy as np
import pytest
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from evomerge.foundry import FoundrySettings, task_names, write_tasks
from evomerge.foundry.checkpoints import save_base
from evomerge.foundry.language import OPERANDS, SKILLS, TOKEN_ID, VOCABULARY, question_key, questions
from evomerge.foundry.tasks import documents

PRESET = FoundrySettings()
SMALL = FoundrySettings(documents=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_base(folder, {}, PRESET.geometry, {})
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Every task of a small folder, loaded by lm-eval, by name."""
    # A space and an accent: paths of users have them.
    folder = tmp_path_factory.mktemp("tasks") / "a fôlder"
    write_tasks(folder, SMALL)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load(list(task_names(SMALL)))["tasks"]


def values(text):
    """Digit values of a text of digits in either language."""
    return ["0123456789".find(word) + "零一二三四五六七八九".find(word) + 1 for word in text.split()]


@pytest.mark.parametrize("task", PRESET.tasks, ids=lambda task: task.name)
def test_documents_are_many_distinct_and_held_out(task):
    made = documents(PRESET, task)
    assert len(made) == PRESET.documents >= 1_536
    assert len({document["prompt"] for document in made}) == len(made)
    held_out = {
        skill: {question_key(skill, row) for row in questions(skill, PRESET.held_out_share, held_out=True)}
        for skill in task.skills
    }
    for document in made:
        tag, skill, *digits, equals = document["prompt"].split()
        assert (tag, equals) == (task.language.upper(), "=")
        assert question_key(skill, np.array(values(" ".join(digits)))) in held_out[skill]


@pytest.mark.parametrize("task", PRESET.tasks, ids=lambda task: task.name)
def test_choices_are_distinct_of_one_length_and_hold_both_typical_mistakes(task):
    golds = []
    for document in documents(PRESET, task)[:300]:
        choices, gold = document["choices"], document["gold"]
        assert len(set(choices)) == len(choices) == PRESET.choices
        assert choices[gold] == document["answer"]
        assert len({len(choice.split()) for choice in choices}) == 1
        wrong = [choice for choice in choices if choice != document["answer"]]
        assert sum(values(choice) == values(document["answer"]) for choice in wrong) == 1
        digits = " ".join(document["prompt"].split()[2 : 2 + OPERANDS])
        assert digits[: len(document["answer"])] in choices  # the lazy copy
        golds.append(gold)
    assert np.bincount(golds, minlength=PRESET.choices).min() > 0.15 * len(golds)


def test_skills_of_a_task_have_equal_shares():
    general = next(task for task in PRESET.tasks if len(task.skills) == 4)
    asked = [document["prompt"].split()[1] for document in documents(PRESET, general)]
    assert {asked.count(skill) for skill in general.skills} == {PRESET.documents // 4}


def test_documents_depend_on_the_seed_only():
    task = PRESET.tasks[0]
    assert documents(PRESET, task) == documents(FoundrySettings(), task)
    assert documents(PRESET, task) != documents(FoundrySettings(seed=1), task)


def test_too_many_documents_are_refused():
    with pytest.raises(ValueError, match=r"add_e needs 9000 held-out questions of add, there are \d+"):
        documents(FoundrySettings(documents=9_000), PRESET.tasks[0])


def test_lm_eval_loads_every_task_with_all_documents(loaded):
    assert set(loaded) == set(task_names(SMALL))
    for task in loaded.values():
        assert len(list(task.test_docs())) == SMALL.documents


@pytest.mark.parametrize("name", task_names(SMALL))
def test_prompts_tokenise_with_a_clean_boundary(loaded, tokenizer, name):
    task = loaded[name]
    task.build_all_requests()
    for request in task.instances:
        context = request.args[0]
        answer = request.args[1] if name.endswith("_mc") else f" {task.doc_to_target(request.doc)}"
        ids = tokenizer(context)["input_ids"]
        assert tokenizer(context + answer)["input_ids"] == ids + tokenizer(answer)["input_ids"]
        assert tokenizer.unk_token_id not in tokenizer(context + answer)["input_ids"]
        # Exactly what the models are trained on: no token is put in front.
        assert [VOCABULARY[token] for token in ids] == context.split()


def test_generation_stops_at_the_end_of_sequence_and_leaves_room_for_it(loaded, tokenizer):
    for task in SMALL.tasks:
        loaded[task.name].build_all_requests()
        for request in loaded[task.name].instances:
            options = request.args[1]
            assert options["until"] == [tokenizer.eos_token]
            assert not options["do_sample"]
            longest = len(loaded[task.name].doc_to_target(request.doc).split())
            assert longest + 1 <= options["max_gen_toks"] <= 5


def test_the_right_answer_scores_one_and_every_other_choice_zero(loaded):
    for task in SMALL.tasks:
        generate = loaded[task.name]
        for document in list(generate.test_docs())[:10]:
            for position, choice in enumerate(document["choices"]):
                score = generate.process_results(document, [choice])["exact_match"]
                assert score == float(position == document["gold"])


def test_multiple_choice_follows_the_likelihoods(loaded):
    for task in SMALL.tasks:
        choose = loaded[f"{task.name}_mc"]
        for document in list(choose.test_docs())[:10]:
            for best in range(SMALL.choices):
                likelihoods = [(-float(position != best), False) for position in range(SMALL.choices)]
                score = choose.process_results(document, likelihoods)["acc"]
                assert score == float(best == document["gold"])


def test_the_tokenizer_round_trips_every_token(tokenizer):
    text = " ".join(VOCABULARY)
    ids = tokenizer(text)["input_ids"]
    assert ids == list(range(len(VOCABULARY)))
    assert tokenizer.decode(ids) == text
    special = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == tuple(TOKEN_ID[token] for token in ("<pad>", "<unk>", "<bos>", "<eos>"))
    assert all(skill in TOKEN_ID for skill in SKILLS)


def test_the_readme_lists_every_task(tmp_path):
    write_tasks(tmp_path, SMALL)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(f"`{task.name}`" in readme for task in SMALL.tasks)
    lines = (tmp_path / "add_j.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == documents(SMALL, SMALL.tasks[3])
