"""Sources with different tokens, merged in one vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import BadRecipe, BadSource
from evomerge.merging import safetensors_writer
from evomerge.merging.alignment import Words, align
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.export import write_checkpoint
from evomerge.merging.mergekit_config import from_mergekit, to_mergekit
from evomerge.merging.opening import open_sources
from evomerge.merging.resident import ResidentModel
from evomerge.merging.vocabulary import plan_vocabulary
from search_spaces.operators import TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source
from search_spaces.vocabulary import TokenRow, Vocabulary

BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
POLICIES = {
    "union": Vocabulary(source="union"),
    "base": Vocabulary(source=0),
    "expert": Vocabulary(source=2),
    "padded": Vocabulary(source="union", pad_to_multiple_of=8),
    "rows": Vocabulary(
        source="union",
        tokens={
            "<tool>": TokenRow(source=2, token="w9"),
            "w5": TokenRow(source=1, force=True),
            "other": TokenRow(source="zero"),
            "new": TokenRow(source=1, token_id=49),
        },
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(folders: list[Path], policy: Vocabulary | None, weights: tuple[float, ...] = (0.4, 0.7)) -> Recipe:
    body = Blocks(blocks=(Block(layers=(0, 4), operator=TaskArithmetic(weights=weights)),))
    sources = tuple(Source(path=str(folder)) for folder in folders)
    return Recipe(sources=sources, dtype="float32", vocabulary=policy, body=body)


def vocabulary(folder: Path) -> dict[str, int]:
    return transformers.AutoTokenizer.from_pretrained(folder).get_vocab()


def expected_row(policy: Vocabulary, token: str, source: int, folders: list[Path], name: str) -> torch.Tensor:
    """The row of ``token`` in ``source``, said in the words of `Vocabulary`."""
    words = [vocabulary(folder) for folder in folders]
    tensors = [Checkpoint.open(folder).tensor(name) for folder in folders]
    wanted = policy.tokens.get(token)
    if token in words[source] and not (wanted and wanted.force):
        return tensors[source][words[source][token]]
    if wanted is not None:
        if wanted.source == "zero":
            return torch.zeros(32)
        row = wanted.token_id if wanted.token_id is not None else words[wanted.source][wanted.token or token]
        return tensors[wanted.source][row]
    owners = [i for i in range(3) if token in words[i]]
    if 0 in owners:
        owners = [0]
    rows = [tensors[i][words[i][token]] for i in owners]
    return torch.stack(rows).mean(0) if rows else torch.zeros(32)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_rows_follow_their_tokens(strangers: list[Path], tmp_path: Path, policy: Vocabulary) -> None:
    to = write_checkpoint(recipe(strangers, policy), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(to)
    merged, words = Checkpoint.open(to), vocabulary(to)
    assert sorted(words.values()) == list(range(len(words)))
    for name in BY_TOKEN:
        for token, place in words.items():
            base, one, two = (expected_row(policy, token, source, strangers, name) for source in range(3))
            found = merged.tensor(name)[place]
            torch.testing.assert_close(found, base + 0.4 * (one - base) + 0.7 * (two - base), rtol=1e-5, atol=1e-7)
    assert model.get_input_embeddings().weight.shape[0] == json.loads((to / "config.json").read_text())["vocab_size"]
    assert model.config.vocab_size == (56 if policy.pad_to_multiple_of else len(words))
    known = set().union(*(vocabulary(folder) for folder in strangers), policy.tokens)
    assert set(words) == (known if policy.source == "union" else set(vocabulary(strangers[policy.source])))


def test_the_resident_model_is_the_exported_one(strangers: list[Path], tmp_path: Path) -> None:
    made = recipe(strangers, Vocabulary(source="union", pad_to_multiple_of=16))
    checkpoints = open_sources(strangers, 0, vocabulary=made.vocabulary, keep=True)
    resident = ResidentModel(checkpoints, dtype="float32").apply(made)
    stock = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(made, tmp_path / "out"))
    ids = torch.tensor([[1, 5, 47, 50, 48, 2]])
    with torch.inference_mode():
        assert torch.equal(resident(ids).logits, stock.eval()(ids).logits)


def test_pieces_of_rows_make_the_same_tensors(
    strangers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Vocabulary(source="union", pad_to_multiple_of=8)
    whole = open_sources(strangers, 0, vocabulary=policy)
    expected = [[source.tensor(name) for name in BY_TOKEN] for source in whole]
    monkeypatch.setattr(safetensors_writer, "BUFFER", 148)
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    pieces = open_sources(strangers, 0, vocabulary=policy)
    for source, tensors in zip(pieces, expected, strict=True):
        assert all(torch.equal(source.tensor(name), tensor) for name, tensor in zip(BY_TOKEN, tensors, strict=True))


def test_without_a_policy_other_vocabularies_are_refused(strangers: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"50 rows.*sources\.vocabulary in a search file"):
        write_checkpoint(recipe(strangers, None), tmp_path / "out")


def test_equal_vocabularies_are_left_alone(family: list[Path]) -> None:
    sources = open_sources(family, 0, vocabulary=Vocabulary(source="union"))
    assert [type(source) for source in sources] == [Checkpoint] * 4


def test_the_chat_template_is_written(family: list[Path], tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    made = recipe(family, Vocabulary(source=0, chat_template=template), weights=(0.1, 0.1, 0.1))
    to = write_checkpoint(made, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False) == "[w5]"


def test_what_happens_is_said(strangers: list[Path]) -> None:
    sources = [Checkpoint.open(folder) for folder in strangers]
    said = plan_vocabulary(sources, Vocabulary(source="union"), 0).sentences()
    assert said == [
        "the merged model has the 51 tokens of all sources together",
        "base gets 1 rows of expert1, 1 rows of expert2, 1 mean rows",
        "expert1 gets 1 rows of expert2",
        "expert2 gets 1 rows of expert1, leaves out 3 of its 53",
    ]
    (only,) = plan_vocabulary(sources[:1], Vocabulary(source="union"), 0).sentences()
    assert only == "the vocabularies are equal: nothing to align"


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (TokenRow(source=0, token="<tool>"), "base, which has no token '<tool>'"),
        (TokenRow(source=1, token_id=50), "expert1, which has no row 50"),
    ],
)
def test_rows_that_are_not_there(strangers: list[Path], row: TokenRow, match: str) -> None:
    with pytest.raises(BadRecipe, match=match):
        open_sources(strangers, 0, vocabulary=Vocabulary(source="union", tokens={"w5": row}))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_mergekit_configs_say_the_same(strangers: list[Path], policy: Vocabulary) -> None:
    made = recipe(strangers, policy)
    text = to_mergekit(made)
    assert from_mergekit(text).vocabulary == policy
    value = yaml.safe_load(text)
    assert "tokenizer_source" not in value
    assert value["tokenizer"].get("pad_to_multiple_of") == policy.pad_to_multiple_of


def test_chat_templates_of_mergekit_configs(family: list[Path]) -> None:
    def read(template: str) -> str | None:
        text = f"merge_method: linear\nmodels: [{{model: {family[0]}, parameters: {{weight: 1}}}}]\n"
        policy = from_mergekit(text + f"chat_template: {json.dumps(template)}").vocabulary
        return policy.chat_template if policy else None

    assert read("auto") == "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert read("{{ messages }}") == "{{ messages }}"


TOKENS = [f"t{i}" for i in range(8)]


@given(
    owned=st.lists(st.lists(st.sampled_from(TOKENS), unique=True), min_size=2, max_size=4),
    base=st.booleans(),
    pad=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_token_gets_a_row(owned: list[list[str]], base: bool, pad: int) -> None:
    sources = [
        Words(str(i), {token: number for number, token in enumerate(tokens)}, len(tokens))
        for i, tokens in enumerate(owned)
    ]
    merged = {token: number for number, token in enumerate(TOKENS)}
    policy = Vocabulary(source="union", pad_to_multiple_of=pad)
    found = align(policy, merged, sources, 0 if base else None)
    assert found.size % pad == 0
    assert found.size - pad < len(TOKENS) <= found.size
    for token, place in merged.items():
        owners = [i for i, words in enumerate(sources) if token in words.ids]
        assert [int(row) for row in found.own[:, place]] == [words.ids.get(token, -1) for words in sources]
        expected = -1 if not owners else 0 if base and 0 in owners else owners[0] if len(owners) == 1 else -2
        assert found.stand_in[place] == expected
        if expected >= 0:
            assert found.row[place] == sources[expected].ids[token]
    assert np.array_equal(found.owners, found.own >= 0)
