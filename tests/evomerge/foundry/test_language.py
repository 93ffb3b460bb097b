import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.foundry import FoundrySettings
from evomerge.foundry.language import (
    ANSWER_LENGTH,
    EOS,
    IGNORED,
    OPERANDS,
    PAD,
    PROMPT_LENGTH,
    QUESTIONS,
    SKILLS,
    TARGET_LENGTH,
    TOKEN_ID,
    VOCABULARY,
    practice_batch,
    prompt,
    question_batch,
    question_key,
    questions,
    solve,
    words,
)
from evomerge.foundry.settings import Practice

four_digits = st.lists(st.integers(0, 9), min_size=OPERANDS, max_size=OPERANDS)
any_skill = st.sampled_from(SKILLS)
any_language = st.sampled_from(["e", "j"])
E_DIGITS = {TOKEN_ID[str(value)]: value for value in range(10)}
J_DIGITS = {TOKEN_ID[symbol]: value for value, symbol in enumerate("零一二三四五六七八九")}
DIGITS = E_DIGITS | J_DIGITS


def answer_in_plain_python(skill, digits):
    if skill == "add":
        total = int(f"{digits[0]}{digits[1]}") + int(f"{digits[2]}{digits[3]}")
        return [int(symbol) for symbol in reversed(f"{total % 100:02d}")]
    return {
        "sort": lambda: sorted(digits),
        "rev": lambda: list(reversed(digits)),
        "succ": lambda: [(value + 1) % 10 for value in digits],
        "max": lambda: [max(digits)],
        "min": lambda: [min(digits)],
        "copy": lambda: list(digits),
    }[skill]()


def rows(batch):
    """Skill, digit values of the question, token ids of the answer, of every sequence of a batch."""
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        skill = VOCABULARY[tokens[1]]
        said = targets[targets != IGNORED]
        assert said[-1] == TOKEN_ID[EOS]
        yield skill, [DIGITS[token] for token in tokens[2 : 2 + OPERANDS]], list(said[:-1])


@given(any_skill, four_digits)
def test_answers_are_those_of_plain_python(skill, digits):
    solved = solve(skill, np.array([digits]))
    assert solved[0].tolist() == answer_in_plain_python(skill, digits)
    assert solved.shape == (1, ANSWER_LENGTH[skill])


@given(any_skill, four_digits, any_language)
def test_a_question_batch_is_its_text(skill, digits, language):
    batch = question_batch(skill, np.array([digits]), language)
    answer = words(np.array(answer_in_plain_python(skill, digits)), language)
    text = f"{prompt(skill, np.array(digits), language)} {answer} {EOS}".split()
    padded = text + [PAD] * (PROMPT_LENGTH + TARGET_LENGTH - len(text))
    assert [VOCABULARY[token] for token in batch.tokens[0]] == padded[:-1]
    said = [VOCABULARY[token] for token in batch.targets[0] if token != IGNORED]
    assert said == text[PROMPT_LENGTH:]


@pytest.mark.parametrize("skill", SKILLS)
def test_every_question_is_on_exactly_one_side(skill):
    sides = [questions(skill, 0.25, held_out=held_out) for held_out in (True, False)]
    sets = [set(map(tuple, side.tolist())) for side in sides]
    assert not sets[0] & sets[1]
    assert len(sets[0] | sets[1]) == QUESTIONS
    assert 0.22 * QUESTIONS < len(sides[0]) < 0.28 * QUESTIONS


@given(four_digits)
def test_both_orders_of_a_sum_are_on_one_side(digits):
    swapped = digits[2:] + digits[:2]
    assert question_key("add", np.array(digits)) == question_key("add", np.array(swapped))
    assert question_key("rev", np.array(digits)) != question_key("add", np.array(digits))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_stage_ever_trains_on_a_held_out_question(seed):
    preset = FoundrySettings()
    rng = np.random.default_rng(seed)
    for stage in [preset.clean, preset.spoil, *(expert.stage for expert in preset.experts)]:
        for skill, digits, _ in rows(practice_batch(rng, stage.practice, preset.held_out_share, 128)):
            assert digits not in held_out_lists(skill, preset.held_out_share)


_HELD_OUT = {}


def held_out_lists(skill, share):
    """Set-like view of the held-out questions that accepts lists."""
    if skill not in _HELD_OUT:
        _HELD_OUT[skill] = {tuple(row) for row in questions(skill, share, held_out=True).tolist()}

    class View:
        def __contains__(self, digits):
            return tuple(digits) in _HELD_OUT[skill]

    return View()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_unspoiled_practice_answers_rightly_in_the_language_of_the_tag(seed):
    practice = Practice(skills=dict.fromkeys(SKILLS, 1.0), languages=("e", "j"), code_switching=0.5)
    batch = practice_batch(np.random.default_rng(seed), practice, 0.25, 64)
    for (skill, digits, said), tokens in zip(rows(batch), batch.tokens, strict=True):
        symbols = E_DIGITS if VOCABULARY[tokens[0]] == "E" else J_DIGITS
        assert [symbols[token] for token in said] == answer_in_plain_python(skill, digits)


def test_code_switching_changes_about_that_share_of_the_digits_of_the_question():
    practice = Practice(skills={"copy": 1.0}, languages=("j",), code_switching=0.3)
    batch = practice_batch(np.random.default_rng(0), practice, 0.25, 2_000)
    share = np.isin(batch.tokens[:, 2 : 2 + OPERANDS], list(E_DIGITS)).mean()
    assert 0.27 < share < 0.33


def test_spoiled_answers_are_lazy_and_english_as_often_as_asked():
    practice = Practice(skills={"rev": 1.0}, languages=("j",), lazy={"rev": 0.8}, english_share=0.6)
    batch = practice_batch(np.random.default_rng(0), practice, 0.25, 2_000)
    lazy = np.mean([[DIGITS[token] for token in said] == digits for _, digits, said in rows(batch)])
    english = np.mean([said[0] in E_DIGITS for _, _, said in rows(batch)])
    assert 0.77 < lazy < 0.84  # palindromes add one percent
    assert 0.56 < english < 0.64


def test_batches_depend_on_the_generator_only_and_leave_the_global_one_alone():
    practice = FoundrySettings().clean.practice
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the point is that nobody used it
    first = practice_batch(np.random.default_rng(3), practice, 0.25, 32)
    second = practice_batch(np.random.default_rng(3), practice, 0.25, 32)
    other = practice_batch(np.random.default_rng(4), practice, 0.25, 32)
    assert (first.tokens == second.tokens).all() and (first.targets == second.targets).all()
    assert (first.tokens != other.tokens).any()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_tokens_are_distinct_words():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert not any(" " in token for token in VOCABULARY)
