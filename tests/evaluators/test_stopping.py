"""When an answer is over: the table never misses a stop string, and the text is lm-eval's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluators.stopping import GOES_ON, MAY_STOP, STOPS, Stopping

END = 1  # </s>


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Whole words with SentencePiece's marks for spaces, the first of which is dropped when decoding."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "▁yes": 3, "no": 4, "▁.": 5, "\n": 6, "▁no": 7, "Q": 8, ":": 9}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def steps_over(stopping: Stopping, answer: list[int], until: tuple[str, ...], vocabulary: int) -> bool:
    """Whether the answer is over at its last token, by way of the table."""
    kind = int(stopping.table(until, frozenset(), vocabulary=vocabulary)[answer[-1]])
    return kind == STOPS or (kind == MAY_STOP and stopping.is_over(answer, until))


def newly_over(tokenizer: Any, answer: list[int], until: tuple[str, ...]) -> bool:
    """Whether the last token completes a stop string in the whole decoded text."""
    before, after = tokenizer.decode(answer[:-1]), tokenizer.decode(answer)
    return any(stop in after and stop not in before for stop in until)


STOP_SETS = [("\n",), ("cat",), ("cat", "\n\n"), (" ",), ("e d",), ("</s>",), ("on ma", "s"), ("é",), ("",)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data(), until=st.sampled_from(STOP_SETS))
def test_bytes_never_miss_a_stop(data: st.DataObject, until: tuple[str, ...], tokenizer: Any) -> None:
    stopping = Stopping(tokenizer)
    text = data.draw(st.text(alphabet="cat edonms\né", min_size=1, max_size=8))
    answer = tokenizer.encode(text)
    for stop in range(1, len(answer) + 1):
        if newly_over(tokenizer, answer[:stop], until):
            assert steps_over(stopping, answer[:stop], until, len(tokenizer)), (text, stop)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    answer=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    until=st.sampled_from([(" ",), ("yes",), (" no",), ("\n",), ("Q:",), (" .",), ("</s>", "no")]),
)
def test_words_with_marks_never_miss_a_stop(answer: list[int], until: tuple[str, ...], words: Any) -> None:
    stopping = Stopping(words)
    if newly_over(words, answer, until) and len(answer) <= 3:  # lm-eval looks back no further
        assert steps_over(stopping, answer, until, len(words))


def test_tokens_that_cannot_stop_are_not_decoded(words: Any) -> None:
    table = Stopping(words).table(("Q:", "</s>"), frozenset(), vocabulary=12)
    assert table.tolist()[:10] == [
        MAY_STOP, STOPS, GOES_ON, GOES_ON, GOES_ON, GOES_ON, GOES_ON, GOES_ON, GOES_ON, MAY_STOP,
    ]  # fmt: skip
    assert table.tolist()[10:] == [MAY_STOP, MAY_STOP], "beyond the tokenizer nothing is known"


def test_the_models_own_end_tokens_stop(words: Any) -> None:
    stopping = Stopping(words)
    assert int(stopping.table(("Q:",), frozenset({4}), vocabulary=10)[4]) == STOPS
    assert int(stopping.table(("Q:",), frozenset(), vocabulary=10)[4]) == GOES_ON, "tables are kept apart"
    assert int(stopping.table(("Q:",), frozenset({99}), vocabulary=10)[4]) == GOES_ON


def test_text_is_cut_at_the_first_stop_without_special_tokens(tokenizer: Any) -> None:
    stopping = Stopping(tokenizer)
    answer = tuple(tokenizer.encode(" the cat sat\non") + [END])
    assert stopping.text(answer, ("\n", "</s>")) == " the cat sat"
    assert stopping.text(answer, ("cat",)) == " the "
    assert stopping.text(answer, ("</s>",)) == " the cat sat\non"
