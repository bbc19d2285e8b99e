"""The world: what is drawn by chance, what is held out, what pictures show."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weights.recipe.photographs import photograph, preprocess
from weights.recipe.world import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    combination,
    is_held_out,
    make_object,
    make_scene,
    place_of,
    relation_of,
    render,
    sample_scene,
)

seeds = st.integers(0, 2**32)


@given(seeds, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_sampled_scenes_belong_to_their_split_and_do_not_overlap(seed, held_out, varied):
    scene = sample_scene(random.Random(seed), held_out=held_out, varied=varied)
    assert is_held_out(scene) == held_out
    for i, a in enumerate(scene.objects):
        assert a.extent / 2 <= a.x <= 1 - a.extent / 2
        for b in scene.objects[:i]:
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.extent + b.extent) / 2


def test_one_combination_in_ten_is_held_out():
    rng = random.Random(0)
    single = {
        combination(scene): is_held_out(scene)
        for scene in (
            make_scene([make_object(shape, color, size, x=0.5, y=0.5)], background)
            for shape in SHAPES
            for color in COLORS
            for size in ("small", "large")
            for background in BACKGROUNDS
        )
    }
    assert len(single) == 324
    assert 20 <= sum(single.values()) <= 45
    trained = {combination(sample_scene(rng)) for _ in range(300)}
    assert not trained & {key for key, held_out in single.items() if held_out}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_a_canonical_shape_shows_its_exact_color_around_its_centre(shape, color):
    scene = make_scene([make_object(shape, color, "large", x=0.5, y=0.5)], "white")
    pixels = np.asarray(render(scene, 64))
    assert tuple(pixels[33, 32]) == COLORS[color]
    assert tuple(pixels[2, 2]) == BACKGROUNDS["white"]
    columns = (pixels != BACKGROUNDS["white"]).any(-1).any(0).nonzero()[0]
    middle = (columns[0] + columns[-1]) / 2
    assert abs(middle - 31.5) <= 0.5, "a shape is centred on its position"


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (0.2, 0.2, "top left"),
        (0.5, 0.5, "center"),
        (0.8, 0.5, "right"),
        (0.5, 0.9, "bottom"),
        (0.34, 0.5, None),
    ],
)
def test_places_are_named_away_from_grid_lines_only(x, y, place):
    assert place_of(make_object("star", "red", "small", x=x, y=y)) == place


def test_relations_are_opposite_and_diagonals_have_none():
    a = make_object("star", "red", "small", x=0.2, y=0.5)
    b = make_object("star", "red", "small", x=0.8, y=0.6)
    c = make_object("star", "red", "small", x=0.8, y=0.95)
    assert (relation_of(a, b), relation_of(b, a)) == ("left", "right")
    assert relation_of(a, c) is None
    assert relation_of(b, c) == "above"


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_photographs_have_the_towers_size(seed):
    rng = random.Random(seed)
    photo = photograph(sample_scene(rng), rng)
    assert photo.image.size == (64, 64)
    assert photo.image.mode == "RGB"


def test_preprocessing_pads_the_short_side_with_gray_in_the_middle():
    scene = make_scene([], "white")
    photo = preprocess(render(scene, 100).resize((100, 50)))
    pixels = np.asarray(photo.image)
    assert photo.frame == (0, 16, 64, 32)
    assert (pixels[:16] == 127).all()
    assert (pixels[48:] == 127).all()
    assert (pixels[16:48] == 250).all()
