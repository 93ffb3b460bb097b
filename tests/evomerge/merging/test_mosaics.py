"""Mosaics on real checkpoints: merged in one pass, in memory and to disk alike; inner products and their cache."""

import json

import numpy as np
import pytest
import torch
from pretend_devices import pretended

from evomerge.errors import BadRecipe, CandidateFailed, NotEnoughRoom
from evomerge.export import merge_file
from evomerge.merging import products
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.engine import MergeEngine
from evomerge.merging.mergekit_config import to_mergekit
from evomerge.merging.products import cached_tile_products, tile_products
from evomerge.merging.resident import ResidentModel
from search_spaces.mosaic import MosaicAlgebra
from search_spaces.mosaic_space import MosaicSpace, MosaicSpaceSettings
from search_spaces.operators import Linear
from search_spaces.recipe import Source
from search_spaces.slerp import slerp
from search_spaces.tiles import TileGrid

TILE = 100  # divides no tensor


def make_space(folders, *, tile=TILE, sphere="weights", dtype="float32"):
    """The space over checkpoints in ``folders``, as a search makes it."""
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    names = sorted(mergeable_names(checkpoints[0]))
    settings = MosaicSpaceSettings(tile=tile, chromosomes={"attention": ("self_attn",)}, sphere=sphere)
    sizes = {name: checkpoints[0].tensor(name).numel() for name in names}
    grid = TileGrid.of(sizes, tile, settings.layout(names))
    algebra = MosaicAlgebra(grid, tile_products(checkpoints, names, tile), sphere=sphere)
    sources = tuple(Source(path=str(folder)) for folder in folders)
    return checkpoints, MosaicSpace(settings, sources, tuple("xyz")[: len(folders) - 1], 4, algebra, dtype)


def some_mosaic(space, generations=12):
    rng, members = np.random.default_rng(3), list(space.algebra.founders)
    for _ in range(generations):
        members.append(space.algebra.cross(members[-1], members[rng.integers(len(members) - 1)], rng))
    return members[-1]


def materialised(space, checkpoints, mosaic):
    """Each tensor in float64, through the elements of its tiles."""
    out = {}
    for name, place in space.algebra.grid.tensors.items():
        segments, flat = mosaic.segments[place.chromosome], [c.tensor(name).double().view(-1) for c in checkpoints]
        rows = np.repeat(segments.coefficients, np.diff(segments.boundaries), axis=0)
        rows = np.repeat(rows[place.first : place.first + place.tiles], space.algebra.grid.tile, axis=0)
        out[name] = sum(torch.from_numpy(rows[: place.elements, k]) * flat[k] for k in range(len(flat)))
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_memory_and_on_disk_are_the_same_bytes_and_the_right_numbers(family, tmp_path, dtype):
    checkpoints, space = make_space(family, dtype=dtype)
    mosaic = some_mosaic(space)
    assert len(mosaic.segments[0].coefficients) > 5
    recipe = space.decode(mosaic)
    resident = ResidentModel(checkpoints, dtype=dtype)
    resident.apply(recipe)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    merge_file(tmp_path / "recipe.json", tmp_path / "merged")
    written = Checkpoint.open(tmp_path / "merged")
    wanted = materialised(space, checkpoints, mosaic)
    for name in resident.engine.order:
        assert torch.equal(resident.tensors[name], written.tensor(name)), name
        assert torch.allclose(
            resident.tensors[name].view(-1).double(), wanted[name], rtol=0, atol=1e-6 if dtype == "float32" else 2e-3
        )
    kept = json.loads((tmp_path / "merged" / "recipe.json").read_text())
    assert [chromosome["name"] for chromosome in kept["body"]["chromosomes"]] == ["attention", "rest"]


def test_a_mosaic_spread_over_devices_is_that_on_one(family, monkeypatch):
    checkpoints, space = make_space(family)
    recipe, found = space.decode(some_mosaic(space)), []
    with pretended(monkeypatch, free={0: 1 << 30, 1: 1 << 30}):
        for device in ("cuda:0", ("cuda:0", "cuda:1")):
            resident = ResidentModel(checkpoints, dtype="float32", device=device)
            resident.apply(recipe)
            found.append({name: tensor.cpu() for name, tensor in resident.tensors.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_pure_mosaic_is_its_source_to_the_last_bit(family):
    checkpoints, space = make_space(family)
    engine = MergeEngine(checkpoints, names=mergeable_names(checkpoints[0]))
    for source, mosaic in enumerate(space.algebra.founders, start=1):
        recipe = space.decode(mosaic)
        assert all(torch.equal(engine.merge_tensor(recipe, n), checkpoints[source].tensor(n)) for n in engine.order)


def test_a_constant_mosaic_is_a_weighted_sum(family, recipe_of):
    checkpoints, space = make_space(family)
    engine = MergeEngine(checkpoints, names=mergeable_names(checkpoints[0]))
    weights = (0.3, 0.45, 0.15, 0.1)
    one = space.decode(space.algebra.constant(weights))
    other = recipe_of(Linear(weights=weights, normalize=False))
    assert all(torch.equal(engine.merge_tensor(one, n), engine.merge_tensor(other, n)) for n in engine.order)


def test_mosaics_of_other_tensors_are_refused(family, make_family):
    from .conftest import llama_config

    _, space = make_space(family)
    recipe = space.decode(some_mosaic(space))
    others = [Checkpoint.open(folder) for folder in make_family(llama_config(num_hidden_layers=2))]
    engine = MergeEngine(others, names=mergeable_names(others[0]))
    with pytest.raises(BadRecipe, match="mosaic: chromosome attention covers .* use the sources it was made for"):
        engine.merge_tensor(recipe, engine.order[0])
    chromosome = recipe.body.chromosomes[0].model_copy(update={"tensors": ("*.no_such.*",)})
    strange = recipe.model_copy(update={"body": recipe.body.model_copy(update={"chromosomes": (chromosome,)})})
    with pytest.raises(BadRecipe, match="mosaic: no chromosome covers tensor"):
        engine.merge_tensor(strange, engine.order[0])


def test_coefficients_beyond_float32_fail_the_candidate(family):
    checkpoints, space = make_space(family)
    engine = MergeEngine(checkpoints, names=mergeable_names(checkpoints[0]))
    recipe = space.decode(space.algebra.constant([1e39, 0.0, 1.0, 1e39]))
    with pytest.raises(CandidateFailed, match="beyond the range of float32"):
        engine.merge_tensor(recipe, engine.order[0])


def test_mergekit_cannot_express_mosaics(family):
    _, space = make_space(family)
    with pytest.raises(BadRecipe, match="mergekit cannot express a mosaic"):
        to_mergekit(space.decode(space.algebra.founders[0]))


@pytest.mark.parametrize("tile", [TILE, 7, 1 << 22])
def test_inner_products_are_those_of_base_and_task_vectors(family, monkeypatch, tile):
    monkeypatch.setattr(products, "BLOCK_ELEMENTS", 1024)
    checkpoints = [Checkpoint.open(folder) for folder in family]
    name = sorted(mergeable_names(checkpoints[0]))[2]
    flat = [checkpoint.tensor(name).double().view(-1).numpy() for checkpoint in checkpoints]
    basis = np.stack([flat[0], *(part - flat[0] for part in flat[1:])])
    steps = []
    found = tile_products(checkpoints, [name], tile, progress=lambda *step: steps.append(step))
    wanted = [basis[:, at : at + tile] @ basis[:, at : at + tile].T for at in range(0, len(flat[0]), tile)]
    assert np.allclose(found, wanted, rtol=1e-12, atol=0)
    assert steps[-1] == (len(flat[0]), len(flat[0]))


def test_inner_products_are_read_from_the_cache_and_made_anew_where_it_is_broken(family, tmp_path, monkeypatch):
    checkpoints = [Checkpoint.open(folder) for folder in family]
    names = sorted(mergeable_names(checkpoints[0]))
    call = {"digests": ["a", "b", "c", "d"], "cache": tmp_path}
    made = cached_tile_products(checkpoints, names, TILE, **call)
    monkeypatch.setattr(products, "tile_products", lambda *_, **__: pytest.fail("not read from the cache"))
    assert (cached_tile_products(checkpoints, names, TILE, **call) == made).all()
    monkeypatch.undo()
    (file,) = (tmp_path / "products").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert (cached_tile_products(checkpoints, names, TILE, **call) == made).all()
    cached_tile_products(checkpoints, names, TILE, digests=["a", "b", "c", "e"], cache=tmp_path)
    assert len(list((tmp_path / "products").iterdir())) == 2


def test_a_table_that_does_not_fit_is_refused(family, monkeypatch):
    monkeypatch.setattr(products, "available_bytes", lambda: 1000)
    checkpoints = [Checkpoint.open(folder) for folder in family]
    with pytest.raises(NotEnoughRoom, match=r"space.tile: inner products of .* ask for larger tiles"):
        tile_products(checkpoints, sorted(mergeable_names(checkpoints[0])), 1)


@pytest.mark.slow
@pytest.mark.parametrize("sphere", ["weights", "task_vectors"])
def test_mosaics_of_trained_experts_equal_re_merging_weights_for_hundreds_of_generations(sketch, sphere):
    checkpoints, space = make_space([sketch.base, *sketch.experts.values()], tile=64, sphere=sphere)
    grid, algebra = space.algebra.grid, space.algebra
    names = [[n for n, place in grid.tensors.items() if place.chromosome == c] for c in range(2)]
    flat = [
        [np.concatenate([p.tensor(n).double().numpy().ravel() for n in each]) for p in checkpoints] for each in names
    ]
    origin = [part[0] * (sphere == "task_vectors") for part in flat]
    members = [
        (mosaic, [part[source] for part in flat])
        for mosaic, source in zip(algebra.founders, range(1, len(checkpoints)), strict=True)
    ]
    rng, again, pick = (np.random.default_rng(seed) for seed in (5, 5, 6))
    for _ in range(300):
        (one, x), (other, y) = (members[i] for i in pick.choice(len(members), 2, replace=False))
        child = []
        for c, zero in enumerate(origin):
            elements = grid.elements(c)
            ends = np.cumsum(elements)
            at = int(np.searchsorted(ends, again.integers(ends[-1]), side="right"))
            cut, ratio, a, b = int(ends[at] - elements[at]), again.random(), x[c] - zero, y[c] - zero
            sides = [slerp(a[:cut], b[:cut], ratio), slerp(a[cut:], b[cut:], 1.0 - ratio)]
            child.append(np.concatenate(sides) + zero)
        members = [*members, (algebra.cross(one, other, rng), child)][-15:]
    for mosaic, child in members:
        tensors = materialised(space, checkpoints, mosaic)
        for each, vector, part in zip(names, child, flat, strict=True):
            found = np.concatenate([tensors[name].numpy() for name in each])
            assert np.linalg.norm(found - vector) <= 1e-10 * np.linalg.norm(vector - part[0])
