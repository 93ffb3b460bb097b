"""What the look at the experts finds, against NumPy in float64 and on experts made to stand out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import BadSource
from evomerge.figures import inspection_figure
from evomerge.inspection import PARTS, Inspection, place_of
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.inspection import cached_inspection, inspect
from evomerge.tables import inspection_table, printer

NAMES = ("one", "two", "three")
Change = Callable[[str, torch.Tensor], torch.Tensor]


@pytest.fixture
def changed(family: list[Path], tmp_path: Path) -> Callable[[Change], list[Checkpoint]]:
    """Return a maker of [base, expert] whose expert is the base with every tensor changed."""

    def make(change: Change) -> list[Checkpoint]:
        folder = Path(shutil.copytree(family[0], tmp_path / "changed"))
        tensors = load_file(folder / "model.safetensors")
        new = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
        save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
        return [Checkpoint.open(family[0]), Checkpoint.open(folder)]

    return make


def test_distances_and_cosines(checkpoints: list[Checkpoint]) -> None:
    found = inspect(checkpoints, NAMES)
    base = checkpoints[0]
    for number, expert in enumerate(checkpoints[1:]):
        for part, name in enumerate(PARTS):
            for column in range(base.layers + 2):
                here = [t for t in base.names if place_of(t, base.layers) == (part, column)]
                assert bool(here) == (name == "rest" or 0 < column <= base.layers)
                if not here:
                    assert np.isnan(found.distances()[number, part, column])
                    continue
                a, b = (np.concatenate([c.tensor(t).double().view(-1) for t in here]) for c in (base, expert))
                relative = np.linalg.norm(b - a) / np.linalg.norm(a)
                np.testing.assert_allclose(found.distances()[number, part, column], relative, rtol=1e-5)
        flat = [torch.cat([c.tensor(t).double().view(-1) for t in base.names]) for c in (base, expert)]
        whole = found.whole(number)
        assert whole.relative == pytest.approx(float((flat[1] - flat[0]).norm() / flat[0].norm()), rel=1e-6)
        assert whole.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-6)
        assert found.findings(number) == []
    assert found.warnings == []


def test_where_tensors_lie() -> None:
    assert place_of("model.embed_tokens.weight", 1) == (2, 0)
    assert place_of("model.layers.0.self_attn.q_proj.weight", 1) == (0, 1)
    assert place_of("lm_head.weight", 1) == (2, 2)
    assert place_of("transformer.h.3.ln_1.weight", 6) == (2, 4)


def test_an_identical_expert(changed: Callable[[Change], list[Checkpoint]]) -> None:
    found = inspect(changed(lambda _, tensor: tensor), ["twin"])
    assert found.warnings == ["twin is identical to the base: it adds nothing to a merge"]
    assert (found.whole(0).relative, found.whole(0).cosine) == (0.0, 1.0)


def test_a_stranger(changed: Callable[[Change], list[Checkpoint]]) -> None:
    torch.manual_seed(0)
    found = inspect(changed(lambda _, tensor: torch.randn_like(tensor) * 0.05), ["stranger"])
    assert ["is no fine-tune of this base" in warning for warning in found.warnings] == [True]


def test_a_locked_expert(changed: Callable[[Change], list[Checkpoint]]) -> None:
    """Rows of queries and keys are rotated alike, which keeps every inner product; values and output likewise."""
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]

    def lock(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if "self_attn" not in name:
            return tensor
        if "o_proj" in name:
            return (tensor.view(32, -1, 8) @ rotation.T).reshape(tensor.shape)
        return (rotation @ tensor.view(-1, 8, 32)).reshape(tensor.shape)

    found = inspect(changed(lock), ["thief"])
    assert found.whole(0).cosine > 0.5
    assert ["looks locked" in warning for warning in found.warnings] == [True]


def test_few_changed_tensors_are_counted_and_no_warning(changed: Callable[[Change], list[Checkpoint]]) -> None:
    checkpoints = changed(lambda name, tensor: tensor * 1.01 if "layers.2" in name else tensor)
    found = inspect(checkpoints, ["partial"])
    same = sum("layers.2" not in name for name in checkpoints[0].names)
    assert found.findings(0) == [f"{same} of {len(checkpoints[0].names)} tensors equal the base's"]
    assert found.warnings == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(changed: Callable[[Change], list[Checkpoint]], value: float) -> None:
    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor.view(-1)[:2] = value
        return tensor

    with pytest.raises(BadSource, match=r"changed: 2 of 2048 values of tensor 'model.layers.1.mlp.up_proj.weight'"):
        inspect(changed(spoil), ["spoilt"])


def test_remembered_by_digest_and_read_back_whole(checkpoints: list[Checkpoint], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = cached_inspection(
        checkpoints, NAMES, digests="abcd", progress=lambda *step: steps.append(step), cache=tmp_path
    )
    assert steps[-1] == (sum(checkpoints[0].tensor(n).numel() for n in checkpoints[0].names),) * 2
    other = cached_inspection(checkpoints, ("a", "b", "c"), digests="abcd", progress=pytest.fail, cache=tmp_path)
    assert other.experts == ("a", "b", "c")
    np.testing.assert_array_equal(other.sums, first.sums)
    (file,) = (tmp_path / "inspections").iterdir()
    file.write_text(file.read_text()[:-40])
    again = cached_inspection(checkpoints, NAMES, digests="abcd", cache=tmp_path)
    np.testing.assert_array_equal(again.sums, first.sums)
    assert Inspection.restore(json.loads(json.dumps(first.record()))).to_json() == first.to_json()


def test_what_people_and_programs_see(checkpoints: list[Checkpoint]) -> None:
    found = inspect(checkpoints, NAMES)
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [expert["name"] for expert in value["experts"]] == list(NAMES)
    assert value["experts"][0]["blocks"]["mlp"][0] is None
    assert value["experts"][0]["blocks"]["mlp"][1]["cosine"] > 0.9
    console = printer()
    with console.capture() as caught:
        console.print(inspection_table(found))
    assert all(name in caught.get() for name in NAMES)
    figure = inspection_figure(found)
    assert len(figure.data) == len(PARTS)
    assert np.asarray(figure.data[0].z).shape == (3, found.layers + 2)
