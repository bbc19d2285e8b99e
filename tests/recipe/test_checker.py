"""The judge of drawings is itself judged: on scenes whose content is known, intact and altered."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from weights.recipe import world
from weights.recipe.checker import look
from weights.recipe.verdict import RequiredObject, Requirement, check, judge


def requirement_of(scene: world.Scene) -> Requirement:
    objects = tuple(
        RequiredObject(o.shape, o.color, o.size, world.place_of(o)) for o in scene.objects
    )
    relations = [
        (i, relation, j)
        for i, item in enumerate(scene.objects)
        for j, other in enumerate(scene.objects)
        if i != j and (relation := world.relation_of(item, other))
    ]
    return Requirement(objects, tuple(relations), scene.background)


def soften(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Blur and stain a picture as the decoder of a small VQ model does."""
    rgb = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.1))), dtype=float)
    noise = np.random.default_rng(rng.randrange(2**31))
    stains = noise.normal(0, 4, (rgb.shape[0] // 8 + 1, rgb.shape[1] // 8 + 1, 3))
    stains = stains.repeat(8, 0).repeat(8, 1)[: rgb.shape[0], : rgb.shape[1]]
    rgb = rgb + stains + noise.normal(0, 5, rgb.shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def scenes(count: int, *, varied: bool) -> list[world.Scene]:
    rng = random.Random(5)
    return [world.sample_scene(rng, held_out=bool(i % 2), varied=varied) for i in range(count)]


def alterations(wanted: Requirement, rng: random.Random) -> dict[str, Requirement]:
    """Return the requirement with one thing changed, one variant per thing."""
    i = rng.randrange(len(wanted.objects))
    item = wanted.objects[i]

    def other(values, value: str) -> str:
        return rng.choice([v for v in values if v != value])

    def with_item(changed: RequiredObject) -> Requirement:
        objects = (*wanted.objects[:i], changed, *wanted.objects[i + 1 :])
        return replace(wanted, objects=objects)

    variants = {
        "color": with_item(replace(item, color=other(world.COLORS, item.color))),
        "shape": with_item(replace(item, shape=other(world.SHAPES, item.shape))),
        "size": with_item(replace(item, size=other(world.SIZES, item.size))),
        "background": replace(wanted, background=other(world.BACKGROUNDS, wanted.background)),
        "surplus": replace(wanted, objects=(*wanted.objects, item)),
    }
    if item.place is not None:
        variants["place"] = with_item(replace(item, place=other(PLACES, item.place)))
    if len(wanted.objects) > 1:
        variants["missing"] = replace(wanted, objects=wanted.objects[:-1], relations=())
    if wanted.relations:
        a, relation, b = wanted.relations[0]
        if wanted.objects[a] != wanted.objects[b]:
            wrong = (a, other(world.RELATIONS, relation), b)
            variants["relation"] = replace(wanted, relations=(wrong, *wanted.relations[1:]))
    return variants


PLACES = [
    f"{row} {column}".strip() or "center"
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
]


@pytest.mark.parametrize(
    ("varied", "soft", "bar"),
    [(False, False, 1.0), (False, True, 0.99), (True, False, 0.98), (True, True, 0.93)],
)
def test_true_requirements_hold(varied, soft, bar):
    rng = random.Random(6)
    verdicts = []
    for scene in scenes(200, varied=varied):
        picture = world.render(scene)
        verdicts.append(check(soften(picture, rng) if soft else picture, requirement_of(scene)))
    assert sum(v.holds for v in verdicts) >= bar * len(verdicts), [
        v.faults for v in verdicts if not v.holds
    ]


@pytest.mark.parametrize("soft", [False, True])
def test_altered_requirements_do_not_hold(soft):
    rng = random.Random(7)
    accepted, total = [], 0
    for scene in scenes(150, varied=False):
        picture = world.render(scene)
        found = look(soften(picture, rng) if soft else picture)
        for name, altered in alterations(requirement_of(scene), rng).items():
            total += 1
            if judge(found, altered).holds:
                accepted.append((name, scene))
    assert total > 800
    assert len(accepted) <= 0.01 * total, accepted


@pytest.mark.parametrize("px", [48, 64, 96, 384])
def test_any_size_reads_the_same(px):
    for scene in scenes(25, varied=False):
        verdict = check(world.render(scene, px), requirement_of(scene))
        assert verdict.holds, verdict


@pytest.mark.parametrize("shape", world.SHAPES)
def test_centre_and_extent_are_measured(shape):
    item = world.make_object(shape, "blue", "large", x=0.375, y=0.625)
    (seen,) = look(world.render(world.make_scene([item], "beige"))).objects
    assert (seen.x, seen.y) == pytest.approx((item.x, item.y), abs=0.01)
    assert seen.extent == pytest.approx(item.extent, abs=0.01)


def blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (256, 256), world.BACKGROUNDS["white"])
    return picture, ImageDraw.Draw(picture)


def spiky(inner: float) -> Image.Image:
    """Return five spikes on a disc of `inner` of their length: a star while the disc is small."""
    picture, draw = blank()
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, inner, 1.0) * 60
    draw.polygon(
        [(128 + r * np.sin(a), 128 - r * np.cos(a)) for r, a in zip(radii, angles, strict=True)],
        fill=world.COLORS["red"],
    )
    return picture


def test_a_star_must_be_a_star():
    assert [look(spiky(inner)).objects[0].shape for inner in (0.38, 0.5)] == ["star", "star"]
    for inner in (0.72, 0.8, 1.0):
        assert look(spiky(inner)).objects[0].shape != "star"


@pytest.mark.parametrize("kind", ["ellipse", "rectangle", "pentagon", "half disc", "ring"])
def test_shapes_outside_the_world_have_no_name(kind):
    picture, draw = blank()
    red = world.COLORS["red"]
    match kind:
        case "ellipse":
            draw.ellipse((60, 90, 180, 160), fill=red)
        case "rectangle":
            draw.rectangle((60, 90, 180, 150), fill=red)
        case "pentagon":
            draw.regular_polygon((128, 128, 55), 5, fill=red)
        case "half disc":
            draw.pieslice((60, 60, 160, 160), 180, 360, fill=red)
        case _:
            draw.ellipse((60, 60, 170, 170), outline=red, width=18)
    (seen,) = look(picture).objects
    assert (seen.shape, seen.color) == (None, "red")


def test_colors_outside_the_world_have_no_name():
    picture, draw = blank()
    draw.rectangle((60, 60, 140, 140), fill=(110, 70, 40))
    (seen,) = look(picture).objects
    assert (seen.shape, seen.color) == ("square", None)


def test_a_two_coloured_figure_meets_no_request():
    picture, draw = blank()
    draw.rectangle((60, 60, 100, 140), fill=world.COLORS["red"])
    draw.rectangle((101, 60, 140, 140), fill=world.COLORS["blue"])
    for color in ("red", "blue"):
        assert not check(picture, Requirement((RequiredObject("square", color),))).holds


def test_touching_objects_are_told_apart():
    picture, draw = blank()
    draw.rectangle((40, 80, 110, 150), fill=world.COLORS["red"])
    draw.ellipse((111, 80, 181, 150), fill=world.COLORS["blue"])
    wanted = Requirement(
        (RequiredObject("circle", "blue"), RequiredObject("square", "red")),
        ((0, "right", 1),),
        "white",
    )
    assert check(picture, wanted).holds


def test_a_stain_is_surplus():
    picture, draw = blank()
    draw.ellipse((40, 40, 140, 140), fill=world.COLORS["green"])
    wanted = Requirement((RequiredObject("circle", "green"),))
    assert check(picture, wanted).holds
    draw.rectangle((190, 190, 215, 215), fill=(200, 190, 150))
    assert not check(picture, wanted).holds


def test_faults_are_named():
    scene = world.make_scene([world.make_object("star", "pink", "large", x=0.5, y=0.5)], "gray")
    wanted = Requirement((RequiredObject("star", "red", "large", "center"),), background="white")
    verdict = check(world.render(scene), wanted)
    assert verdict.faults == ("background is gray, not white", "pink instead of red")


def test_sizes_backgrounds_and_surplus_do_not_hide_what_was_asked_for():
    star = world.make_object("star", "blue", "small", x=0.25, y=0.5)
    square = world.make_object("square", "yellow", "small", x=0.75, y=0.5)
    cross = world.make_object("cross", "black", "small", x=0.5, y=0.85)
    found = look(world.render(world.make_scene([cross, square, star], "gray")))
    asked = (RequiredObject("star", "blue", "large", "left"), RequiredObject("square", "yellow"))
    verdict = judge(found, Requirement(asked, ((0, "left", 1),), "white"))
    assert verdict.shows_all
    assert not verdict.holds
    for wrong in (
        Requirement(asked, ((0, "right", 1),)),
        Requirement((replace(asked[0], color="red"), asked[1])),
        Requirement((replace(asked[0], shape="circle"), asked[1])),
        Requirement((replace(asked[0], place="right"), asked[1])),
        Requirement((*asked, *asked)),
    ):
        assert not judge(found, wrong).shows_all
