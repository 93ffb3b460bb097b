"""The toy language: questions about four digits, asked and answered in one of two languages.

A sequence is twelve tokens: language tag, skill, four digits, `=`, answer (one to four digits), `<eos>`,
padding. The languages `E` and `J` share grammar and skill names and differ in their digits. Nothing here
touches a global random generator, and a question belongs to training or to the held-out documents by a hash
of its skill and digit values, in both languages alike.

    E add 3 4 1 7 = 1 5     (34 + 17 = 51, least significant digit first)
    J sort 三 一 四 一 = 一 一 三 四
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from evomerge.foundry.settings import Language, Practice, Skill

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
SKILLS: tuple[Skill, ...] = get_args(Skill)
LANGUAGES: tuple[Language, ...] = get_args(Language)
DIGITS: dict[Language, str] = {"e": "0123456789", "j": "零一二三四五六七八九"}
VOCABULARY: tuple[str, ...] = (
    *(PAD, UNKNOWN, BOS, EOS),
    *(language.upper() for language in LANGUAGES),
    "=",
    *SKILLS,
    *DIGITS["e"],
    *DIGITS["j"],
)
TOKEN_ID: dict[str, int] = {token: position for position, token in enumerate(VOCABULARY)}

OPERANDS = 4
PROMPT_LENGTH = OPERANDS + 3
"""Tokens before the answer: tag, skill, digits, equals sign."""
TARGET_LENGTH = OPERANDS + 1
"""Tokens predicted: the longest answer and the end of sequence."""
ANSWER_LENGTH: dict[Skill, int] = {skill: 1 if skill in ("max", "min") else OPERANDS for skill in SKILLS} | {"add": 2}
QUESTIONS = 10**OPERANDS
"""Questions of one skill in one language."""
IGNORED = -100
"""Target of a position that does not count, as in PyTorch's cross-entropy."""


class Batch(NamedTuple):
    """Sequences for teacher forcing.

    tokens: `(batch, PROMPT_LENGTH + TARGET_LENGTH - 1)` int64, the inputs.
    targets: `(batch, TARGET_LENGTH)` int64, what the last TARGET_LENGTH positions should predict, or IGNORED.
    """

    tokens: IntArray
    targets: IntArray


def all_questions() -> IntArray:
    """`(QUESTIONS, OPERANDS)` digit values of every question, in counting order."""
    return np.indices((10,) * OPERANDS).reshape(OPERANDS, -1).T.astype(np.int64)


def solve(skill: Skill, digits: IntArray) -> IntArray:
    """`(count, ANSWER_LENGTH[skill])` digit values of the right answers to `digits`, `(count, OPERANDS)`."""
    if skill == "add":
        total: IntArray = digits[:, 0] * 10 + digits[:, 1] + digits[:, 2] * 10 + digits[:, 3]
        # Least significant digit first: a carry then only needs what was already said.
        return np.stack([total % 10, total // 10 % 10], axis=1)
    if skill == "sort":
        return np.sort(digits, axis=1)
    if skill == "rev":
        return digits[:, ::-1].copy()
    if skill == "succ":
        return (digits + 1) % 10
    if skill == "max":
        largest: IntArray = digits.max(axis=1, keepdims=True)
        return largest
    if skill == "min":
        smallest: IntArray = digits.min(axis=1, keepdims=True)
        return smallest
    return digits.copy()


def question_key(skill: Skill, digits: IntArray) -> str:
    """Identity of a question for holding out; 34 + 17 and 17 + 34 share one, so that they lie on one side."""
    values = [int(value) for value in digits]
    if skill == "add":
        values = [digit for pair in sorted([values[:2], values[2:]]) for digit in pair]
    return f"{skill} {' '.join(map(str, values))}"


@lru_cache(maxsize=64)
def questions(skill: Skill, share: float, *, held_out: bool) -> IntArray:
    """`(count, OPERANDS)` digit values, read-only, of one side of the split; about `share` are held out."""

    def fraction(key: str) -> float:
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64

    every = all_questions()
    mask = np.array([fraction(question_key(skill, digits)) < share for digits in every])
    chosen: IntArray = every[mask == held_out]
    chosen.flags.writeable = False
    return chosen


def digit_ids(digits: IntArray, in_j: BoolArray) -> IntArray:
    """Token ids of digit values; `in_j` (broadcast against `digits`) says which are written in language j."""
    ids: IntArray = digits + np.where(in_j, TOKEN_ID[DIGITS["j"][0]], TOKEN_ID[DIGITS["e"][0]])
    return ids


def words(digits: IntArray, language: Language) -> str:
    """Digit values `(count,)` as text in one language."""
    return " ".join(DIGITS[language][int(value)] for value in digits)


def prompt(skill: Skill, digits: IntArray, language: Language) -> str:
    """The question as text, up to and including the equals sign."""
    return f"{language.upper()} {skill} {words(digits, language)} ="


def question_batch(skill: Skill, digits: IntArray, language: Language) -> Batch:
    """Clean questions `digits` `(count, OPERANDS)` of one skill in one language, with their right answers."""
    in_j = np.full(digits.shape, language == "j")
    return _batch(skill, digits, solve(skill, digits), in_j, in_j[:, :1], in_j[:, :1])


def practice_batch(rng: np.random.Generator, practice: Practice, share: float, size: int) -> Batch:
    """A training batch of `size` sequences; never a held-out question (`share` of each skill is held out)."""
    skills = list(practice.skills)
    frequency = np.array([practice.skills[skill] for skill in skills])
    which = rng.choice(len(skills), size=size, p=frequency / frequency.sum())
    spoken = np.array([language == "j" for language in practice.languages])
    tagged = spoken[rng.integers(len(spoken), size=size)][:, None]
    switched = tagged ^ (rng.random((size, OPERANDS)) < practice.code_switching)
    answered = tagged & ~(rng.random((size, 1)) < practice.english_share)
    diligence = rng.random((size, 1))
    tokens = np.zeros((size, PROMPT_LENGTH + TARGET_LENGTH - 1), dtype=np.int64)
    targets = np.zeros((size, TARGET_LENGTH), dtype=np.int64)
    for index, skill in enumerate(skills):
        rows = np.flatnonzero(which == index)
        pool = questions(skill, share, held_out=False)
        digits = pool[rng.integers(len(pool), size=len(rows))]
        answers = solve(skill, digits)
        lazy = diligence[rows] < practice.lazy.get(skill, 0.0)
        answers = np.where(lazy, digits[:, : answers.shape[1]], answers)
        part = _batch(skill, digits, answers, switched[rows], tagged[rows], answered[rows])
        tokens[rows], targets[rows] = part
    return Batch(tokens, targets)


def _batch(
    skill: Skill,
    digits: IntArray,
    answers: IntArray,
    in_j: BoolArray,
    tagged: BoolArray,
    answered: BoolArray,
) -> Batch:
    """Assembles sequences; `tagged` and `answered` are `(count, 1)`: are tag and answer in language j."""
    count, length = answers.shape
    full = np.full((count, PROMPT_LENGTH + TARGET_LENGTH), TOKEN_ID[PAD], dtype=np.int64)
    full[:, :1] = np.where(tagged, TOKEN_ID["J"], TOKEN_ID["E"])
    full[:, 1] = TOKEN_ID[skill]
    full[:, 2 : 2 + OPERANDS] = digit_ids(digits, in_j)
    full[:, PROMPT_LENGTH - 1] = TOKEN_ID["="]
    full[:, PROMPT_LENGTH : PROMPT_LENGTH + length] = digit_ids(answers, answered)
    full[:, PROMPT_LENGTH + length] = TOKEN_ID[EOS]
    targets = full[:, PROMPT_LENGTH:].copy()
    targets[:, length + 1 :] = IGNORED
    return Batch(full[:, :-1], targets)
