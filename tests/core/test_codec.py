"""Pictures to codes and back, what of a picture is kept, and what is drawn around it."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from janus_core.codec import keep_first, keep_unmarked
from janus_core.engine.events import Event, Finished
from janus_core.engine.settings import EngineSettings
from janus_core.errors import ImageInputError, ParameterError
from janus_core.images import ImageLimits, decode_mask, fit_square
from janus_core.pipeline import ImageOptions, Pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Pipeline:
    settings = EngineSettings(kv_positions=4096)
    return Pipeline.load(str(tiny_checkpoint), device="cpu", settings=settings)


def draw(pipeline: Pipeline, **options) -> list[Finished]:
    requests = pipeline.image_requests("a star", ImageOptions(**options), request_id="a")
    events: list[Event] = list(pipeline.run(requests))
    ends = {event.request_id: event for event in events if isinstance(event, Finished)}
    return [ends[request.id] for request in requests]


def saved(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_codes_are_decoded_as_the_engine_decodes_them(pipeline: Pipeline) -> None:
    (drawn,) = draw(pipeline, seed=3)
    assert np.array_equal(pipeline.decode_codes(drawn.codes), drawn.pixels)


def test_pixels_are_encoded_as_the_model_encodes_them(pipeline: Pipeline) -> None:
    pixels = noise()
    expected = pipeline.codec._model.encode_codes(
        torch.from_numpy(pixels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    )
    codes = pipeline.encode_picture(pipeline.fitted_picture(saved(pixels)))
    assert list(codes) == expected[0].tolist()
    assert len(set(codes)) > 1


def test_a_picture_of_another_shape_is_covered_and_cropped(pipeline: Pipeline) -> None:
    """A wide picture, red at both ends: only its middle square is encoded."""
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, :32], wide[:, 64:] = (255, 0, 0), (255, 0, 0)
    fitted = fit_square(Image.fromarray(wide), pipeline.config.vq.image_size)
    assert fitted.shape == (16, 16, 3)
    assert fitted[:, 2:-2].max() == 0


@pytest.mark.parametrize("codes", [(1, 2), (0,) * 17, (0,) * 15 + (10**6,), (-1,) + (0,) * 15])
def test_what_is_no_picture_is_not_decoded(pipeline: Pipeline, codes: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError) as raised:
        pipeline.decode_codes(codes)
    assert raised.value.param == "codes"


def test_a_prefix_of_codes_is_gone_on_from(pipeline: Pipeline) -> None:
    """What a picture had drawn before is the same when it is given instead."""
    (whole,) = draw(pipeline, seed=5)
    for num_given in (1, 6, 15):
        (rest,) = draw(pipeline, seed=5, forced_codes=whole.codes[:num_given])
        assert rest.codes == whole.codes
    other = (whole.codes[0] + 1) % pipeline.config.vq.codebook_size
    (changed,) = draw(pipeline, seed=5, forced_codes=(other,))
    assert changed.codes[0] == other
    assert changed.codes[1:] != whole.codes[1:]


def scattered(codes: Sequence[int], *, every: int) -> tuple[int | None, ...]:
    """The codes, but for each `every`th."""
    return tuple(None if place % every == 1 else code for place, code in enumerate(codes))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_kept_codes_are_fed_wherever_they_are(pipeline: Pipeline, guidance: float) -> None:
    """Forcing what would have been drawn changes nothing; what stands between is drawn anew."""
    wholes = draw(pipeline, n=3, seed=8, guidance=guidance)
    num_changed = 0
    for whole in wholes:
        forced = scattered(whole.codes, every=3)
        seed = 8 + wholes.index(whole)
        assert draw(pipeline, seed=seed, forced_codes=forced, guidance=guidance)[0].codes == (
            whole.codes
        )
        other = draw(pipeline, seed=99, forced_codes=forced, guidance=guidance)[0].codes
        assert all(f in (None, code) for f, code in zip(forced, other, strict=True))
        num_changed += other != whole.codes
    assert num_changed


def test_forced_and_free_pictures_share_a_batch(pipeline: Pipeline) -> None:
    (whole,) = draw(pipeline, seed=5)
    forced = scattered(whole.codes, every=2)
    first = pipeline.image_requests("a star", ImageOptions(seed=5), request_id="a")
    second = pipeline.image_requests(
        "a star", ImageOptions(seed=5, forced_codes=forced), request_id="b"
    )
    events = list(pipeline.run([*first, *second]))
    assert [e.codes for e in events if isinstance(e, Finished)] == [whole.codes] * 2


def test_codes_that_cannot_be_forced_are_refused_by_name(pipeline: Pipeline) -> None:
    for forced in ((0,) * 16, (0,) * 17, (-1,), (None, 10**6)):
        with pytest.raises(ParameterError) as raised:
            draw(pipeline, forced_codes=forced)
        assert raised.value.param == "codes", forced


def test_previews_are_spread_over_what_is_drawn(pipeline: Pipeline) -> None:
    forced = (*[0] * 8, None, None, 0, 0, None, None, 0, 0)
    options = ImageOptions(forced_codes=forced, num_previews=1, progress=True)
    (request,) = pipeline.image_requests("a", options, request_id="a")
    assert request.preview_at == (10,)
    events = list(pipeline.run([request]))
    names = [type(event).__name__ for event in events]
    assert names.count("Preview") == 1
    counts = [event.num_codes for event in events if type(event).__name__ == "ImageProgress"]
    assert counts == [12, 16]


def marked(pipeline: Pipeline, picture: bytes, mask: bytes | None) -> list[int] | None:
    """The places of the codes to draw anew."""
    fitted, marks = pipeline.marked_picture(picture, mask)
    assert np.array_equal(fitted, pipeline.fitted_picture(picture))
    return None if marks is None else [place for place, mark in enumerate(marks) if mark]


def test_a_mask_marks_the_squares_it_touches(pipeline: Pipeline) -> None:
    """4 x 4 codes of 4 pixels each; one transparent pixel, then a row of squares."""
    picture = noise(32, 32)
    codes = pipeline.encode_picture(pipeline.fitted_picture(saved(picture)))
    mask = np.full((32, 32, 4), 255, dtype=np.uint8)
    mask[9, 15, 3] = 0
    mask[24:, :, 3] = 0
    _, marks = pipeline.marked_picture(saved(picture), saved(mask))
    forced = keep_unmarked(codes, marks)
    assert [place for place, code in enumerate(forced) if code is None] == [5, 12, 13, 14, 15]
    assert all(f in (None, code) for f, code in zip(forced, codes, strict=True))
    # Light on dark without transparency, as other interfaces send it, and at half the size.
    grey = np.zeros((16, 16), dtype=np.uint8)
    grey[4, 7] = grey[12:] = 255
    assert marked(pipeline, saved(picture), saved(grey)) == [5, 12, 13, 14, 15]


def test_a_picture_can_be_its_own_mask(pipeline: Pipeline) -> None:
    assert marked(pipeline, saved(noise()), None) is None
    picture = noise(channels=4)
    picture[..., 3] = 255
    picture[:4, :4, 3] = 0
    assert marked(pipeline, saved(picture), None) == [0]


def test_what_is_cropped_away_marks_nothing(pipeline: Pipeline) -> None:
    tall = noise(height=32, channels=4)
    tall[..., 3] = 255
    picture = saved(tall[..., :3])
    mask = np.zeros((32, 16), dtype=np.uint8)
    mask[:4] = 255
    with pytest.raises(ParameterError) as raised:
        pipeline.marked_picture(picture, saved(mask))
    assert raised.value.param == "mask"
    tall[:4, :, 3] = 0
    assert marked(pipeline, saved(tall), None) is None


def test_a_mask_that_marks_nothing_or_is_none_is_refused(pipeline: Pipeline) -> None:
    picture, black = saved(noise()), saved(np.zeros((16, 16), dtype=np.uint8))
    for mask, error in ((black, ParameterError), (b"no image", ImageInputError)):
        with pytest.raises(error) as raised:
            pipeline.marked_picture(picture, mask)
        assert raised.value.param == "mask"
    assert decode_mask(black, ImageLimits()) is None


def test_variations_keep_the_first_share() -> None:
    codes = tuple(range(100, 116))
    for strength, num_drawn in ((0.0, 1), (0.25, 4), (0.3, 5), (1.0, 16)):
        forced = keep_first(codes, strength=strength)
        assert forced == (*codes[: 16 - num_drawn], *[None] * num_drawn)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ParameterError) as raised:
            keep_first(codes, strength=strength)
        assert raised.value.param == "strength"
