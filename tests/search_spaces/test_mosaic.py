"""Mosaics: the grid, the genome, and that its algebra equals merging the weights themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.genes import Genome
from search_spaces.mosaic import Mosaic, MosaicAlgebra, Segments, read_genome
from search_spaces.mosaic_space import MosaicSpace, MosaicSpaceSettings
from search_spaces.recipe import Recipe, Source
from search_spaces.seeds import seeds
from search_spaces.slerp import slerp, slerp_coefficients
from search_spaces.tiles import Chromosome, TileGrid

SIZES = {"b.attn": 70, "a.mlp": 33, "c.attn": 5, "d.norm": 64}
CHROMOSOMES = (("attention", ("*.attn",)), ("rest", ("*",)))
numbers = st.floats(-2.0, 2.0, allow_nan=False)


def grid_of(tile):
    return TileGrid.of(SIZES, tile, CHROMOSOMES)


class Weights:
    """Random sources over the grid of `SIZES`, as whole vectors."""

    def __init__(self, tile, sources=4, seed=0, apart=1.0):
        rng = np.random.default_rng(seed)
        self.grid = grid_of(tile)
        base = rng.normal(size=sum(SIZES.values()))
        deltas = rng.normal(size=(sources - 1, len(base))) * apart
        self.sources = np.vstack([base, base + deltas])
        names = sorted(SIZES)
        starts = np.cumsum([0, *(SIZES[name] for name in names)])
        self.place = {name: slice(a, b) for name, a, b in zip(names, starts, starts[1:], strict=False)}
        basis = np.vstack([base, deltas])
        tiles = [
            basis[:, at : min(at + tile, place.stop)]
            for place in self.place.values()
            for at in range(place.start, place.stop, tile)
        ]
        self.products = np.array([part @ part.T for part in tiles])

    def algebra(self, sphere="weights"):
        return MosaicAlgebra(self.grid, self.products, sphere=sphere)

    def chromosome(self, number):
        """Elements of a chromosome in its order."""
        chosen = [name for name, place in self.grid.tensors.items() if place.chromosome == number]
        return np.concatenate([np.arange(self.place[n].start, self.place[n].stop) for n in chosen])

    def merged(self, mosaic):
        """The whole vector of a mosaic, through the spans of every tensor."""
        out = np.full(self.sources.shape[1], np.nan)
        for name, place in self.grid.tensors.items():
            segments = mosaic.segments[place.chromosome]
            for start, stop, segment in self.grid.spans(name, segments.boundaries):
                where = slice(self.place[name].start + start, self.place[name].start + stop)
                out[where] = segments.coefficients[segment] @ self.sources[:, where]
        return out

    def crossed(self, one, other, rng, *, sphere, split=True):
        """Split-point SLERP of whole vectors, with the draws that `MosaicAlgebra.cross` makes."""
        origin = self.sources[0] if sphere == "task_vectors" else np.zeros(self.sources.shape[1])
        child = np.empty_like(one)
        for number in range(len(CHROMOSOMES)):
            where, elements = self.chromosome(number), self.grid.elements(number)
            cut = len(where)
            if split:
                ends = np.cumsum(elements)
                at = int(np.searchsorted(ends, rng.integers(elements.sum()), side="right"))
                cut = int(ends[at] - elements[at])
            ratio = rng.random()
            a, b = (one - origin)[where], (other - origin)[where]
            parts = [slerp(a[:cut], b[:cut], ratio), slerp(a[cut:], b[cut:], 1.0 - ratio)]
            child[where] = np.concatenate(parts) + origin[where]
        return child


@given(st.integers(1, 200), st.data())
def test_spans_cover_every_tensor_once_and_in_order(tile, data):
    grid = grid_of(tile)
    assert sum(grid.elements(0)) == 75
    for name, place in grid.tensors.items():
        tiles = grid.tiles[place.chromosome]
        inner = data.draw(st.sets(st.integers(1, tiles - 1))) if tiles > 1 else set()
        boundaries = [0, *sorted(inner), tiles]
        spans = list(grid.spans(name, boundaries))
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == SIZES[name]
        assert all(span.start % tile == 0 for span in spans)


def test_tensors_that_no_chromosome_has_and_chromosomes_without_tensors_are_refused():
    with pytest.raises(ValueError, match=r"no chromosome covers tensor 'a.mlp'"):
        TileGrid.of(SIZES, 8, CHROMOSOMES[:1])
    with pytest.raises(ValueError, match="chromosome 'late': no tensor is left"):
        TileGrid.of(SIZES, 8, (*CHROMOSOMES, ("late", ("*",))))


@pytest.mark.parametrize("sphere", ["weights", "task_vectors"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("apart", [1.0, 1e-3])
def test_crossing_mosaics_equals_crossing_weights_over_generations(sphere, split, apart):
    weights, rng, again = Weights(8, apart=apart), np.random.default_rng(5), np.random.default_rng(5)
    algebra, pick = weights.algebra(sphere), np.random.default_rng(6)
    members = [(mosaic, weights.merged(mosaic)) for mosaic in algebra.founders]
    for _ in range(150):
        (one, x), (other, y) = (members[i] for i in pick.choice(len(members), 2, replace=False))
        child = (algebra.cross(one, other, rng, split=split), weights.crossed(x, y, again, sphere=sphere, split=split))
        members = [*members, child][-12:]
    mosaic, vector = members[-1]
    moved = np.linalg.norm(vector - weights.sources[0])
    assert np.linalg.norm(weights.merged(mosaic) - vector) < 1e-10 * moved


def test_a_child_of_equal_parents_is_its_parent():
    algebra = Weights(8).algebra()
    parent = algebra.constant([0.1, 0.4, 0.3, 0.2])
    child = algebra.cross(parent, parent, np.random.default_rng(0))
    for segments in child.segments:
        assert np.allclose(segments.coefficients, [0.1, 0.4, 0.3, 0.2], atol=1e-15)


def test_task_vectors_of_children_are_as_long_as_those_of_their_parents():
    weights = Weights(8)
    one, two, *_ = weights.algebra("task_vectors").founders
    child = weights.algebra("task_vectors").cross(one, two, np.random.default_rng(1), split=False)
    lengths = [np.linalg.norm(weights.merged(m) - weights.sources[0]) for m in (one, two, child)]
    assert min(lengths[:2]) * 0.99 < lengths[2] < max(lengths[:2]) * 1.01
    assert all(np.allclose(s.coefficients.sum(axis=1), 1.0) for s in child.segments)


def mosaics():
    rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6)
    return st.lists(rows, min_size=1, max_size=3).map(
        lambda table: Mosaic([Segments(np.arange(len(rows) + 1) * 3, np.array(rows)) for rows in table])
    )


@given(mosaics(), mosaics())
@settings(max_examples=50)
def test_bytes_say_everything(one, other):
    assert read_genome(one.to_bytes()) == one
    assert hash(read_genome(one.to_bytes())) == hash(one)
    assert (one == other) == (one.to_bytes() == other.to_bytes())


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_no_vector_of_genes_is_taken_for_a_mosaic(values):
    genome = Genome(values)
    assert type(read_genome(genome.to_bytes())) is Genome
    assert read_genome(genome.to_bytes()) == genome


def test_equal_neighbours_are_one_segment():
    split = Mosaic([Segments(np.array([0, 2, 5, 9]), np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))])
    whole = Mosaic([Segments(np.array([0, 5, 9]), np.array([[1.0, 0.0], [0.5, 0.5]]))])
    assert split == whole
    assert np.allclose(split.values, [7 / 9, 2 / 9])


@given(st.floats(0.0, 1.0), st.floats(1e-9, 1e3))
def test_slerp_has_its_ends_and_is_linear_where_it_has_no_angle(t, length):
    assert slerp_coefficients(4.0, 9.0, 0.5, 0.0) == (1.0, 0.0)
    assert slerp_coefficients(length, length, length, t) == (1.0 - t, t)
    assert slerp_coefficients(0.0, length, 0.0, t) == (1.0 - t, t)
    assert slerp_coefficients(length, length, -length, t) == (1.0 - t, t)


@pytest.mark.parametrize(
    ("boundaries", "rows", "complaint"),
    [((0, 3, 3), ((1.0,), (1.0,)), "must grow from 0"), ((1, 3), ((1.0,),), "grow"), ((0, 3), ((1.0,),) * 2, "rows")],
)
def test_chromosomes_that_make_no_sense_are_refused(boundaries, rows, complaint):
    with pytest.raises(ValueError, match=complaint):
        Chromosome(name="all", tensors=("*",), boundaries=boundaries, coefficients=rows)


@pytest.fixture
def space():
    chosen = MosaicSpaceSettings(tile=8, chromosomes={"attention": ("*.attn",)})
    sources = tuple(Source(path=f"/{name}", digest=name * 64) for name in "bxyz")
    return MosaicSpace(chosen, sources, ("x", "y", "z"), 4, Weights(8).algebra(), "float32")


def test_recipes_of_mosaics_are_read_back_and_have_digests(space):
    one = space.algebra.cross(*space.algebra.founders[:2], np.random.default_rng(0))
    recipe = space.decode(one)
    assert Recipe.model_validate_json(recipe.to_json()) == recipe
    assert recipe.digest == space.decode(one).digest != space.decode(space.algebra.founders[0]).digest
    assert len(space.genes) == len(one.values) == 8
    wrong = recipe.model_dump() | {"sources": recipe.model_dump()["sources"][:3]}
    with pytest.raises(ValueError, match=r"chromosome attention needs a coefficient per source \(3\), got 4"):
        Recipe.model_validate(wrong)
    with pytest.raises(TypeError, match="decodes mosaics"):
        space.decode(Genome([0.5]))


def test_all_linear_seeds_are_mosaics(space):
    genomes = {seed.name: seed.genome for seed in seeds(space)}
    assert genomes["x"] == space.algebra.founders[0]
    assert genomes["TIES 0.5"] is None
    assert np.allclose(genomes["task arithmetic 0.4"].segments[0].coefficients, [[-0.2, 0.4, 0.4, 0.4]])


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="name of the remainder"):
        MosaicSpaceSettings(chromosomes={"rest": ("*",)})
    with pytest.raises(ValueError, match="at least one pattern"):
        MosaicSpaceSettings(chromosomes={"attention": ()})
    layout = MosaicSpaceSettings(chromosomes={"attention": ("self_attn",)}).layout(["a.self_attn.q", "norm"])
    assert layout == (("attention", ("*.self_attn.*", "*.attn.*", "*.attention.*")), ("rest", ("*",)))
    assert MosaicSpaceSettings().layout(["a"]) == (("all", ("*",)),)
    assert MosaicSpaceSettings(chromosomes={"everything": ("*",)}).layout(["a"]) == (("everything", ("*",)),)
