"""From a directory to requests the engine accepts, with every choice made and nothing lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from janus_core.device import (
    DTYPES,
    Placement,
    fit,
    free_bytes,
    place,
    weights_bytes,
    with_formats,
)
from janus_core.engine.events import Event, Finished, TextDelta
from janus_core.engine.kinds import Kind
from janus_core.engine.request import Constraint
from janus_core.engine.settings import EngineSettings, bytes_per_position
from janus_core.engine.slots import SlotPool
from janus_core.errors import (
    CheckpointError,
    ContextLengthError,
    ImageInputError,
    ParameterError,
    RequestError,
)
from janus_core.image_decoder import ImageDecoder
from janus_core.images import ImageLimits, encode_image
from janus_core.pipeline import ImageOptions, Pipeline, TextOptions
from janus_core.prompt import DEFAULT_SYSTEM_PROMPT, Message

SETTINGS = EngineSettings(kv_positions=4096)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.load(str(tiny_checkpoint), device="cpu", settings=SETTINGS)


def picture(pipeline: Pipeline, value: int = 200):
    pixels = np.full((20, 30, 3), value, dtype=np.uint8)
    return pipeline.prepare_image(encode_image(pixels, "png"))


def question(*parts) -> list[Message]:
    return [Message("user", parts)]


def finished(events: list[Event]) -> dict[str, Finished]:
    return {event.request_id: event for event in events if isinstance(event, Finished)}


def test_a_question_about_an_image_is_answered(pipeline: Pipeline) -> None:
    requests = pipeline.text_requests(
        question(picture(pipeline), "What is it?"), TextOptions(max_tokens=5), request_id="a"
    )
    events = list(pipeline.run(requests))
    (end,) = finished(events).values()
    assert end.usage.output_tokens <= 5
    assert end.usage.image_tokens == pipeline.config.vision.num_image_tokens
    sampled = [token for e in events if isinstance(e, TextDelta) for token in e.tokens]
    assert len(sampled) == end.usage.output_tokens


def test_pictures_are_drawn_and_their_seeds_make_them_again(pipeline: Pipeline) -> None:
    drawn = {}
    requests = pipeline.image_requests("a star", ImageOptions(n=3), request_id="a")
    ends = finished(list(pipeline.run(requests)))
    for request in requests:
        drawn[request.sampling.seed] = ends[request.id].codes
        assert ends[request.id].pixels.shape == (pipeline.config.vq.image_size,) * 2 + (3,)
    assert len(set(drawn.values())) == 3
    seed = max(drawn)
    (again,) = pipeline.image_requests("a star", ImageOptions(seed=seed), request_id="b")
    assert finished(list(pipeline.run([again])))["b-0"].codes == drawn[seed]


def test_prompts_are_those_of_transformers_processor(mini_checkpoint: Path) -> None:
    """The embedded checkpoint: ids and pixels against `AutoProcessor` reading the same files."""
    from PIL import Image
    from transformers import AutoProcessor

    pipeline = Pipeline.load(str(mini_checkpoint), device="cpu", settings=SETTINGS)
    processor = AutoProcessor.from_pretrained(mini_checkpoint)
    image = Image.fromarray(np.arange(64 * 32 * 3, dtype=np.uint8).reshape(32, 64, 3))
    prepared = pipeline.image_processor.prepare(image)
    text = "What color is the circle?"
    (request,) = pipeline.text_requests(question(prepared, text), TextOptions(), request_id="a")
    theirs = processor(
        text=f"<|User|>: <image_placeholder>\n{text}\n\n<|Assistant|>:",
        images=[image],
        return_tensors="pt",
    )
    assert list(request.token_ids) == theirs["input_ids"][0].tolist()
    assert np.abs(request.images[0].pixels_CHW - theirs["pixel_values"][0].numpy()).max() < 1e-5
    (drawing,) = pipeline.image_requests("a red star", ImageOptions(), request_id="b")
    theirs = processor(
        text="<|User|>: a red star\n\n<|Assistant|>:", generation_mode="image", return_tensors="pt"
    )
    assert list(drawing.token_ids) == theirs["input_ids"][0].tolist()


def test_defaults_are_those_of_the_checkpoint(pipeline: Pipeline, tmp_path: Path) -> None:
    (request,) = pipeline.image_requests("a star", ImageOptions(), request_id="a")
    assert (request.guidance, request.sampling.temperature) == (5.0, 1.0)
    assert (request.sampling.top_k, request.sampling.top_p) == (0, 1.0)
    assert request.uncond_token_ids is not None
    (answer,) = pipeline.text_requests(question("a"), TextOptions(), request_id="a")
    assert answer.sampling.temperature == 0.0
    assert answer.max_tokens == pipeline.max_context - len(answer.token_ids)
    copy = shutil.copytree(pipeline.directory, tmp_path / "copy")
    (copy / "generation_config.json").write_text(
        json.dumps({"guidance_scale": 2.5, "temperature": 0.5, "top_p": 0.9})
    )
    other = Pipeline.load(str(copy), device="cpu", settings=SETTINGS)
    (request,) = other.image_requests("a star", ImageOptions(), request_id="a")
    assert request.guidance == 2.5
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.9)
    (answer,) = other.text_requests(question("a"), TextOptions(), request_id="a")
    assert (answer.sampling.temperature, answer.sampling.top_p) == (0.0, 1.0)
    options = ImageOptions(guidance=3.0, temperature=2.0, top_p=1.0)
    (request,) = other.image_requests("a star", options, request_id="a")
    assert (request.guidance, request.sampling.temperature) == (3.0, 2.0)
    assert request.sampling.top_p == 1.0
    assert other.name == "copy"


def test_seeds_count_up_and_are_drawn_anew_for_every_request(pipeline: Pipeline) -> None:
    given = pipeline.image_requests("a", ImageOptions(n=3, seed=7), request_id="a")
    assert [(r.id, r.sampling.seed) for r in given] == [("a-0", 7), ("a-1", 8), ("a-2", 9)]
    texts = pipeline.text_requests(question("a"), TextOptions(n=2, seed=0), request_id="t")
    assert [(r.id, r.sampling.seed) for r in texts] == [("t-0", 0), ("t-1", 1)]
    drawn = {
        pipeline.image_requests("a", ImageOptions(), request_id="a")[0].sampling.seed
        for _ in range(20)
    }
    assert len(drawn) == 20
    assert max(drawn) < 2**32


def test_seeds_can_be_given_one_by_one(pipeline: Pipeline) -> None:
    given = pipeline.image_requests("a", ImageOptions(n=3, seed=(9, 2, 9)), request_id="a")
    assert [request.sampling.seed for request in given] == [9, 2, 9]
    ends = finished(list(pipeline.run(given)))
    assert ends["a-0"].codes == ends["a-2"].codes != ends["a-1"].codes


def test_bad_words_are_not_said(pipeline: Pipeline) -> None:
    """Words of one token and of several, wherever the answer had them."""
    tokenizer = pipeline.tokenizer

    def said(**options) -> list[int]:
        requests = pipeline.text_requests(
            question("a"), TextOptions(max_tokens=16, **options), request_id="a"
        )
        events = list(pipeline.run(requests))
        return [t.token_id for e in events if isinstance(e, TextDelta) for t in e.tokens]

    def has(ids: list[int], part: list[int]) -> bool:
        return any(ids[at : at + len(part)] == part for at in range(len(ids)))

    free = said()
    num_tried = 0
    for length in (1, 2, 3):
        parts = [free[at : at + length] for at in range(len(free) - length)]
        for part in parts:
            word = tokenizer.decode(part)
            if word.strip() and tokenizer.encode_text(word) == part:
                num_tried += 1
                assert not has(said(bad_words=(word,)), part), word
                # A word is also kept out where it begins with a space.
                assert not has(said(bad_words=(word.lstrip(),)), part), word
                break
    assert num_tried >= 2


def test_without_an_opening_the_prompt_ends_after_the_last_message(pipeline: Pipeline) -> None:
    (open_one,) = pipeline.text_requests(question("Hi"), TextOptions(), request_id="a")
    options = TextOptions(add_generation_prompt=False)
    (bare,) = pipeline.text_requests(question("Hi"), options, request_id="a")
    opening = pipeline.tokenizer.encode_pieces(
        (pipeline.tokenizer.piece(pipeline.tokenizer.assistant_role), ":")
    )
    assert list(open_one.token_ids) == [*bare.token_ids, *opening]
    assert open_one.strip_start
    assert not bare.strip_start


def test_an_answer_has_the_form_that_was_asked_for(pipeline: Pipeline) -> None:
    options = TextOptions(constraint=Constraint.choice(["red", "blue"]), n=2, temperature=1.0)
    requests = pipeline.text_requests(question("Which colour?"), options, request_id="a")
    events = list(pipeline.run(requests))
    for request in requests:
        texts = [e.text for e in events if isinstance(e, TextDelta) and e.request_id == request.id]
        assert "".join(texts) in ("red", "blue")
    assert {end.reason for end in finished(events).values()} == {"stop"}


def test_guidance_1_draws_unguided_and_nothing_else_does(pipeline: Pipeline) -> None:
    for guidance in (0.0, 0.5, 1.0, 1.5, 5.0):
        (request,) = pipeline.image_requests("a", ImageOptions(guidance=guidance), request_id="a")
        assert request.guidance == guidance
        assert (request.uncond_token_ids is None) == (guidance == 1.0)


def test_a_negative_prompt_is_used_or_refused(pipeline: Pipeline) -> None:
    (plain,) = pipeline.image_requests("a red star", ImageOptions(), request_id="a")
    (negative,) = pipeline.image_requests(
        "a red star", ImageOptions(negative_prompt="blue"), request_id="a"
    )
    assert negative.uncond_token_ids != plain.uncond_token_ids
    options = ImageOptions(negative_prompt="blue", guidance=1.0)
    with pytest.raises(ParameterError) as raised:
        pipeline.image_requests("a red star", options, request_id="a")
    assert raised.value.param == "negative_prompt"


def test_previews_are_spread_evenly(pipeline: Pipeline) -> None:
    num_codes = pipeline.config.vq.num_codes
    for num_previews in (0, 1, 3, 16, 4 * num_codes):
        options = ImageOptions(num_previews=num_previews)
        (request,) = pipeline.image_requests("a", options, request_id="a")
        at = request.preview_at
        assert list(at) == sorted(set(at))
        assert all(0 < number < num_codes for number in at)
        assert len(at) == min(num_previews, num_codes - 1)
        gaps = np.diff([0, *at, num_codes])
        assert max(gaps) - min(gaps) <= 1


def test_max_tokens_is_cut_to_the_context_and_a_full_context_refused(pipeline: Pipeline) -> None:
    long = TextOptions(max_tokens=10**9, min_tokens=10**6)
    (request,) = pipeline.text_requests(question("a"), long, request_id="a")
    assert len(request.token_ids) + request.max_tokens == pipeline.max_context
    with pytest.raises(ContextLengthError) as raised:
        pipeline.text_requests(question("a " * pipeline.max_context), TextOptions(), request_id="a")
    assert (raised.value.param, raised.value.code) == ("messages", "context_length_exceeded")
    assert str(pipeline.max_context) in raised.value.message
    with pytest.raises(ContextLengthError) as raised:
        pipeline.image_requests("a " * pipeline.max_context, ImageOptions(), request_id="a")
    assert raised.value.param == "prompt"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (TextOptions(temperature=float("nan")), "temperature"),
        (TextOptions(top_p=0.0), "top_p"),
        (TextOptions(seed=-1), "seed"),
        (TextOptions(seed=2**63 - 1, n=2), "seed"),
        (TextOptions(n=0), "n"),
        (TextOptions(max_tokens=0), "max_tokens"),
        (TextOptions(max_tokens=5, min_tokens=6), "min_tokens"),
        (TextOptions(logit_bias=((10**6, 1.0),)), "logit_bias"),
        (TextOptions(logit_bias=((-1, 1.0),)), "logit_bias"),
        (TextOptions(stop_token_ids=(2**31,)), "stop_token_ids"),
        (TextOptions(stop=("",)), "stop"),
        (TextOptions(logprobs=21), "top_logprobs"),
        (TextOptions(bad_words=("a", " ")), "bad_words"),
        (TextOptions(constraint=Constraint.regex("(")), "structured_outputs.regex"),
        (TextOptions(seed=(1, 2)), "seed"),
        (ImageOptions(seed=(1, 2), n=3), "seed"),
        (TextOptions(continue_final=True), "continue_final_message"),
        (ImageOptions(guidance=float("inf")), "guidance_scale"),
        (ImageOptions(guidance=-1.0), "guidance_scale"),
        (ImageOptions(temperature=float("nan")), "temperature"),
        (ImageOptions(n=0), "n"),
        (ImageOptions(num_previews=-1), "partial_images"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(pipeline: Pipeline, options, param) -> None:
    is_text = isinstance(options, TextOptions)
    build = pipeline.text_requests if is_text else pipeline.image_requests
    with pytest.raises(RequestError) as raised:
        build(question("a") if is_text else "a", options, request_id="a")
    assert raised.value.param == param


def test_images_are_bounded_by_the_limits(tiny_checkpoint: Path) -> None:
    images = ImageDecoder(ImageLimits(max_pixels=100))
    small = Pipeline.load(str(tiny_checkpoint), device="cpu", settings=SETTINGS, images=images)
    with pytest.raises(ImageInputError) as raised:
        picture(small)
    assert raised.value.code == "image_too_large"


def test_several_images_of_a_conversation_keep_their_order(pipeline: Pipeline) -> None:
    first, second = picture(pipeline, 10), picture(pipeline, 240)
    messages = [
        Message("user", (first, "One?")),
        Message("assistant", ("Yes.",)),
        Message("user", ("And", second, second)),
    ]
    (request,) = pipeline.text_requests(messages, TextOptions(), request_id="a")
    assert [image.digest for image in request.images] == [
        image.digest for image in (first, second, second)
    ]
    for image in request.images:
        run = request.token_ids[image.first : image.first + image.num_tokens]
        assert set(run) == {pipeline.tokenizer.image_placeholder_id}
    assert DEFAULT_SYSTEM_PROMPT in pipeline.tokenizer.decode(request.token_ids)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"image_size": 40, "size": None}, "squares of 40 pixels"),
        ("processor_config.json", {"num_image_tokens": 7}, "num_image_tokens"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, file: str, change: dict, message: str
) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    values = json.loads((copy / file).read_text()) | change
    (copy / file).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        Pipeline.load(str(copy), device="cpu", settings=SETTINGS)


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    definition = json.loads((copy / "tokenizer.json").read_text())
    extra = definition["added_tokens"][-1] | {"id": 5000, "content": "<extra>"}
    definition["added_tokens"].append(extra)
    (copy / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(CheckpointError, match="5001 ids, but the embedding table only 320 rows"):
        Pipeline.load(str(copy), device="cpu", settings=SETTINGS)


def test_the_loading_thread_works_on_the_device_that_was_asked_for(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is allocated, captured or launched there: otherwise it would be device 0."""
    placement = Placement(torch.device("cuda", 2), torch.bfloat16)
    monkeypatch.setattr("janus_core.pipeline.with_formats", lambda *_, **__: placement)
    noted = []

    def load(*_, device: torch.device, **__) -> None:
        noted.append(("load", device))
        raise CheckpointError("far enough")

    monkeypatch.setattr("janus_core.pipeline.load_model", load)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: noted.append(("set", device)))
    with pytest.raises(CheckpointError, match="far enough"):
        Pipeline.load(str(tiny_checkpoint), device="cpu", settings=SETTINGS)
    assert noted == [("set", placement.device), ("load", placement.device)]


def test_placement_by_name() -> None:
    assert place("cpu", "auto") == Placement(torch.device("cpu"), torch.float32)
    assert place("cpu", "bfloat16").dtype_name == "bfloat16"
    for device, dtype, param in (
        ("tpu", "auto", "device"),
        ("cpu:1", "auto", "device"),
        ("cuda:x", "auto", "device"),
        ("cuda:999", "auto", "device"),
        ("cpu", "int8", "dtype"),
        ("cpu", "float16", "dtype"),
    ):
        with pytest.raises(ParameterError) as raised:
            place(device, dtype)
        assert raised.value.param == param


def test_the_pool_fits_the_machine(pipeline: Pipeline) -> None:
    config, cpu = pipeline.config, place("cpu")
    asked = EngineSettings(kv_bytes=2**20)
    assert replace(fit(asked, config, cpu), step_token_budget=None) == asked
    fitted = fit(EngineSettings(max_sequences=4), config, cpu)
    assert fitted.kv_positions == 4 * config.backbone.max_positions
    # A model whose pool would exceed the machine's share gets the share.
    huge = replace(config, backbone=replace(config.backbone, max_positions=2**24))
    share = fit(EngineSettings(), huge, cpu).kv_positions
    per_position = bytes_per_position(config.backbone, 4)
    assert 0 < share * per_position <= free_bytes(cpu.device) / 3
    with pytest.raises(CheckpointError, match="Not enough memory on cpu"):
        fit(EngineSettings(), config, cpu, reserved_bytes=2**60)
    assert all(dtype.itemsize in (2, 4) for dtype in DTYPES.values())


def test_a_gpu_draws_as_many_pictures_at_once_as_are_promised(pipeline: Pipeline) -> None:
    """64 guided ones beside what is kept for text, where the pool has room; a CPU stays at 32."""
    config, gpu = pipeline.config, Placement(torch.device("cuda", 0), torch.bfloat16)
    per_sequence = min(config.vq.num_codes + 256, config.backbone.max_positions)

    def chosen(positions: int, placement: Placement = gpu, **fields) -> EngineSettings:
        return fit(EngineSettings(kv_positions=positions, **fields), config, placement)

    roomy = chosen(400 * per_sequence)
    pictures = Kind(roomy, SlotPool(400 * per_sequence), reserve_of_others=roomy.text_reserve)
    assert pictures.capacity(2, per_sequence) == 64
    assert chosen(100 * per_sequence).max_sequences == 100
    assert chosen(20 * per_sequence).max_sequences == 32, "less only on request"
    assert chosen(400 * per_sequence, max_sequences=8).max_sequences == 8
    assert chosen(400 * per_sequence, place("cpu")).max_sequences == 32
    assert EngineSettings().max_sequences == 32


def test_weights_shrink_to_their_format_once_they_are_read() -> None:
    shapes = [
        ("language_model.model.embed_tokens.weight", (10, 4)),
        ("language_model.lm_head.weight", (10, 4)),
        ("language_model.model.norm.weight", (4,)),
    ]
    for weight_format, kept in (("fp32", 336), ("fp16", 256), ("int8", 216)):
        placement = with_formats(place("cpu"), weight_format=weight_format, native=False)
        assert weights_bytes(shapes, placement) == (336, kept)


def test_a_large_model_on_a_cpu_takes_small_steps(pipeline: Pipeline) -> None:
    """A chunk of 512 tokens of a large model would hold everyone up for seconds."""
    # The language model of Janus-Pro-1B: 1.2 thousand million weights besides the tables.
    large = replace(
        pipeline.config.backbone,
        width=2048, num_layers=24, num_heads=16, num_kv_heads=16, head_dim=128, mlp_width=5632,
    )  # fmt: skip
    config = replace(pipeline.config, backbone=large)
    settings = EngineSettings(kv_positions=2**14, max_sequences=4)
    gpu = Placement(torch.device("cuda", 0), torch.bfloat16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert fit(settings, config, place("cpu")).step_token_budget == 20
        torch.set_num_threads(16)
        assert 100 < fit(settings, config, place("cpu")).tokens_per_step < 200
    finally:
        torch.set_num_threads(before)
    assert fit(settings, pipeline.config, place("cpu")).step_token_budget == 512
    assert fit(settings, config, gpu).step_token_budget == 512
    many = EngineSettings(kv_positions=2**14, max_sequences=600)
    assert fit(many, config, gpu).tokens_per_step == many.tokens_per_step > 600
    asked = EngineSettings(kv_positions=2**14, step_token_budget=300)
    assert fit(asked, config, place("cpu")) is asked
