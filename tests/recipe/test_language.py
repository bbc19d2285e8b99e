"""Questions, captions and rows: true to their scenes, and encoded as a server encodes them."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from weights.recipe import chat
from weights.recipe.captions import caption
from weights.recipe.language import KINDS, description, questions
from weights.recipe.references import REFERENCE_NOUNS, mentions
from weights.recipe.sequences import IGNORED, CodedScene, Writer, collate, kind_of
from weights.recipe.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE
from weights.recipe.world import (
    COLORS,
    SHAPES,
    make_object,
    make_scene,
    place_of,
    relation_of,
    sample_scene,
)

seeds = st.integers(0, 2**32)
CHECKPOINT = Path(__file__).parents[2] / "weights" / "janus-mini"


@pytest.fixture(scope="module")
def writer():
    return Writer(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))


def test_every_kind_of_question_is_asked_of_some_scene():
    rng = random.Random(0)
    asked = {q.kind for _ in range(200) for q in questions(sample_scene(rng), rng)}
    assert asked == set(KINDS)


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_answers_are_true(seed):
    rng = random.Random(seed)
    scene = sample_scene(rng)
    colors = {item.color for item in scene.objects}
    for question in questions(scene, rng):
        if question.kind == "color" and question.answer in COLORS:
            assert question.answer in colors
        elif question.kind == "background" and question.answer not in ("yes", "no"):
            assert question.answer == scene.background
        elif question.kind == "absent":
            name = question.answer.removeprefix("There is no ").removesuffix(".")
            assert name in question.text
            assert all(
                name not in (item.shape, f"{item.color} {item.shape}") for item in scene.objects
            )
        elif question.kind == "what":
            for item in scene.objects:
                assert f"{item.size} {item.color} {item.shape}" in question.answer


def test_a_pair_is_described_from_the_left_or_from_the_top():
    star = make_object("star", "blue", "small", x=0.75, y=0.5)
    square = make_object("square", "orange", "large", x=0.25, y=0.5)
    assert description(make_scene([star, square], "gray")) == (
        "A large orange square is to the left of a small blue star on a gray background."
    )
    assert description(make_scene([star], "white")) == "A small blue star on a white background."


def test_yes_and_no_are_equally_frequent():
    rng = random.Random(1)
    answers = [
        q.answer
        for _ in range(1500)
        for q in questions(sample_scene(rng), rng)
        if q.kind == "existence"
    ]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


@given(seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_captions_say_nothing_untrue(seed, plain):
    rng = random.Random(seed)
    scene = sample_scene(rng, varied=False)
    made = caption(scene, rng, plain=plain)
    assert len(made.required) == len(scene.objects)
    left = list(scene.objects)
    found = []
    for wanted in made.required:
        match = next(
            item
            for item in left
            if item.shape == wanted.shape
            and wanted.color in (None, item.color)
            and wanted.size in (None, item.size)
            and wanted.place in (None, place_of(item))
        )
        left.remove(match)
        found.append(match)
    if len({(item.shape, item.color) for item in found}) == len(found):
        for i, relation, j in made.relations:
            assert relation_of(found[i], found[j]) == relation
    assert made.background in (None, scene.background)


def test_rows_encode_as_whole_prompts_do(writer):
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    rng = random.Random(4)
    for _ in range(40):
        row = writer.understanding(rng)
        first = [i for i, group in enumerate(row.groups) if group in (0, 1)]
        ids = [row.ids[i] for i in first]
        text = tokenizer.decode(ids, skip_special_tokens=False).removeprefix(chat.BOS)
        assert tokenizer.encode(text).ids == ids


def test_labels_lie_on_answers_alone_and_end_with_eos(writer):
    row = writer.understanding(random.Random(2), held_out=True)
    for _, begin, end in row.answers:
        assert row.labels[begin:end] == row.ids[begin:end]
        assert row.ids[end - 1] == writer.special["eos"]
    learned = sum(end - begin for _, begin, end in row.answers)
    assert sum(label != IGNORED for label in row.labels) == learned


def test_an_empty_caption_keeps_its_length_first_and_last_id(writer):
    text = "a red circle"
    full, empty = writer.drawing_ids(text), writer.drawing_ids(text, empty=True)
    assert len(full) == len(empty)
    assert (full[0], full[-1]) == (empty[0], empty[-1])
    assert full[-1] == writer.special["begin_of_image"]
    assert set(empty[1:-1]) == {writer.special["pad"]}


def test_sequences_of_one_row_do_not_see_each_other(writer):
    rng = random.Random(0)
    targets = [
        CodedScene(sample_scene(rng, varied=False), [rng.randrange(9)] * 64, plain=9)
        for _ in range(2)
    ]
    row = writer.generation(rng, targets)
    batch = collate([row], pad=writer.special["pad"])
    second = row.groups.index(2)
    seen = batch.mask_B1TT[0, 0] == 0
    assert not seen[second:, :second].any()
    assert row.positions[second] == 0
    assert torch.equal(seen, seen.tril())
    assert sum(label >= VOCAB_SIZE for label in row.labels) == 128


def test_special_tokens_follow_the_text_in_janus_pros_order():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS.values()]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert tokenizer.get_vocab_size() == ids[-1] + 1 <= VOCAB_SIZE


def test_a_question_tells_which_objects_it_names_and_where_the_names_end():
    star = make_object("star", "blue", "small", x=0.75, y=0.5)
    square = make_object("square", "orange", "large", x=0.25, y=0.5)
    text = "Is the blue star to the left of the large object?"
    named = mentions(text, make_scene([square, star], "gray"))
    assert named == [(len("Is the blue star"), star), (len(text) - 1, square)]


def test_noted_names_are_the_last_tokens_of_names(writer):
    rng = random.Random(3)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    rows = [writer.understanding(rng, held_out=True) for _ in range(10)]
    noted = [tokenizer.decode([row.ids[i]]).strip() for row in rows for i, *_ in row.mentions]
    assert noted
    assert set(noted) <= {*SHAPES, *REFERENCE_NOUNS}


def test_the_state_of_a_drawing_follows_its_visible_codes_in_raster_order(writer):
    square = make_object("square", "red", "small", x=0.25, y=0.25)
    diamond = make_object("diamond", "blue", "small", x=0.75, y=0.75)
    scene = make_scene([diamond, square], "white")
    codes = [0] * 64
    for x, y in ((1, 1), (2, 1), (1, 2), (2, 2)):
        codes[y * 8 + x] = 1
    # The corner of the diamond's bounding box is plain, as in a picture.
    for x, y in ((6, 5), (5, 6), (6, 6)):
        codes[y * 8 + x] = 2
    row = writer.generation(random.Random(0), [CodedScene(scene, codes, plain=0)])
    begun = [state[3] for state in row.drawn]
    assert begun == [0] * 10 + [1] * (5 * 8 + 6 - 9) + [2] * (64 - 5 * 8 - 7)
    assert [state[0] for state in row.drawn] == list(range(len(row.ids) - 65, len(row.ids) - 1))
    red_square, blue_diamond = kind_of(square), kind_of(diamond)
    due = [set(kinds) for _, kinds in row.due]
    assert due[0] == due[9] == {red_square, blue_diamond}
    assert due[10] == due[5 * 8 + 6] == {blue_diamond}
    assert due[5 * 8 + 7] == set()


def test_an_empty_caption_leaves_nothing_due(writer):
    scene = make_scene([make_object("square", "red", "small", x=0.25, y=0.25)], "white")
    rows = [
        writer.generation(random.Random(seed), [CodedScene(scene, [1] * 64, plain=0)])
        for seed in range(40)
    ]
    pad = writer.special["pad"]
    assert {(pad in row.ids, bool(row.due)) for row in rows} == {(True, False), (False, True)}
