import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from evomerge.errors import BadSource, CandidateFailed, NotEnoughRoom, UserMistake
from evomerge.export import _as_recorded, _pinned, merge_file
from evomerge.merging import export
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.export import write_checkpoint
from evomerge.merging.pieces import TensorMerge
from evomerge.merging.sources import pin, tokenizer_fingerprint
from search_spaces.operators import DareTies, TaskArithmetic
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
PLAIN = TaskArithmetic(weights=(0.5, 0.3, 0.2))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_shards_hold_what_one_file_holds(recipe_of: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of(DareTies(weights=(0.5, 0.3, 0.2), densities=(0.5, 0.6, 0.7)), dtype="bfloat16")
    one = Checkpoint.open(write_checkpoint(recipe, tmp_path / "one"))
    many = Checkpoint.open(write_checkpoint(recipe, tmp_path / "many", max_shard_bytes=20_000))
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 30_000 for file in files)
    assert one.names == many.names
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.names)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many", dtype="auto")
    assert all(torch.equal(tensor, one.tensor(name)) for name, tensor in model.state_dict().items())


def test_what_lies_beside_the_weights(family: list[Path], recipe_of: RecipeOf, tmp_path: Path) -> None:
    (family[2] / "special_tokens_map.json").write_text('{"bos_token": "<bos>"}')
    recipe = recipe_of(PLAIN, dtype="float16", tokenizer=2)
    steps: list[tuple[int, int]] = []
    to = write_checkpoint(recipe, tmp_path / "a" / "b", card="# A model", progress=lambda *step: steps.append(step))
    config = json.loads((to / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float16", "float16")
    assert Recipe.model_validate_json((to / "recipe.json").read_text()) == recipe
    assert (to / "README.md").read_text().startswith("# A model\n\nRounding to float16 keeps a cosine of 1.0000")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        assert (to / name).read_bytes() == (family[2] / name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w5 w6"}], tokenize=False) == "w5 w6"
    assert len(steps) == len(Checkpoint.open(to).names)
    assert steps[-1][0] == steps[-1][1] == Checkpoint.open(to).bytes
    assert [path.name for path in to.parent.iterdir()] == ["b"]


def test_no_card_unless_given(recipe_of: RecipeOf, tmp_path: Path) -> None:
    assert not (write_checkpoint(recipe_of(PLAIN), tmp_path / "out") / "README.md").exists()


def test_an_empty_folder_is_taken_and_a_full_one_refused(recipe_of: RecipeOf, tmp_path: Path) -> None:
    to = tmp_path / "out"
    to.mkdir()
    write_checkpoint(recipe_of(PLAIN), to)
    before = {file.name: file.read_bytes() for file in to.iterdir()}
    with pytest.raises(UserMistake, match="exists already"):
        write_checkpoint(recipe_of(TaskArithmetic(weights=(0, 0, 0))), to)
    assert {file.name: file.read_bytes() for file in to.iterdir()} == before


def test_a_file_in_the_way(recipe_of: RecipeOf, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserMistake, match="exists already"):
        write_checkpoint(recipe_of(PLAIN), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_too_little_disk_is_said_first(recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(NotEnoughRoom, match=r"needs 0\.00 GiB and 0\.00 GiB are free"):
        write_checkpoint(recipe_of(PLAIN), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def fail_on_last_tensor(engine: MergeEngine, error: BaseException) -> Callable[..., TensorMerge]:
    merge = MergeEngine.tensor_merge

    def tensor_merge(self: MergeEngine, recipe: Recipe, name: str) -> TensorMerge:
        if name == engine.order[-1]:
            raise error
        return merge(self, recipe, name)

    return tensor_merge


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NotEnoughRoom),
        (CandidateFailed("not finite"), CandidateFailed),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_whatever_goes_wrong_leaves_nothing_behind(
    engine: MergeEngine,
    recipe_of: RecipeOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    shown: type[BaseException],
) -> None:
    monkeypatch.setattr(MergeEngine, "tensor_merge", fail_on_last_tensor(engine, error))
    with pytest.raises(shown):
        write_checkpoint(recipe_of(PLAIN), tmp_path / "out", max_shard_bytes=20_000)
    assert list(tmp_path.iterdir()) == []


def test_changed_sources_are_refused(family: list[Path], recipe_of: RecipeOf, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(family[1], tmp_path / "copy"))
    recipe = recipe_of(PLAIN)
    pinned = pin(recipe.sources[1].model_copy(update={"path": str(copy)}))
    recipe = recipe.model_copy(update={"sources": (recipe.sources[0], pinned, *recipe.sources[2:])})
    write_checkpoint(recipe, tmp_path / "before")
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with pytest.raises(BadSource, match="have changed"):
        write_checkpoint(recipe, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_another_tokenizer_is_noticed_by_recipes_that_name_it(
    family: list[Path], recipe_of: RecipeOf, tmp_path: Path
) -> None:
    recipe = recipe_of(PLAIN, tokenizer=2)
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json())
    assert "tokenizer" not in json.loads(file.read_text())["sources"][2]  # as versions before wrote it
    merge_file(file, tmp_path / "first")
    written = tmp_path / "first" / "recipe.json"
    named = Recipe.model_validate_json(written.read_text())
    assert [source.tokenizer is not None for source in named.sources] == [False, False, True, False]
    merge_file(written, tmp_path / "again")
    config = family[2] / "tokenizer_config.json"
    config.write_text(config.read_text().replace("}", ' , "model_max_length": 7}', 1))
    with pytest.raises(BadSource, match="the tokenizer's files have changed since the recipe was made"):
        merge_file(written, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()
    merge_file(file, tmp_path / "unnamed")  # names none: merged with what is there


def test_exports_of_a_search_name_the_tokenizer_that_it_began_with(recipe_of: RecipeOf, family: list[Path]) -> None:
    recipe = recipe_of(PLAIN)
    recipe = recipe.model_copy(update={"sources": tuple(map(pin, recipe.sources))})
    sources = [source.model_dump(mode="json") for source in recipe.sources]
    kept = tokenizer_fingerprint(family[0])
    (family[0] / "tokenizer_config.json").write_text("{}")
    recorded = _as_recorded(recipe, {"sources": sources, "tokenizers": [kept]})
    assert [source.tokenizer for source in recorded.sources] == [kept, None, None, None]
    assert recorded.digest == recipe.digest
    with pytest.raises(BadSource, match="tokenizer's files have changed"):
        _pinned(recorded)
    assert _as_recorded(recipe, {"sources": sources}) == recipe  # a record of an older version
