"""Our network against transformers' `JanusForConditionalGeneration` with the same files."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from janus_core.checkpoint import load_model
from janus_core.models.janus import JanusModel
from tests.core.models.driving import Driver, Line
from tests.tiny import BEGIN_OF_IMAGE, BOS, PAD, SHAPES, build_tokenizer, save_tiny_checkpoint

TOLERANCE = 1e-4
"""Of the logits of both heads, which reach 16 on the deepest shape."""

GUIDANCE = 3.5
GUIDED_TOLERANCE = (GUIDANCE + GUIDANCE - 1) * TOLERANCE
"""`w * cond - (w - 1) * uncond` multiplies the rounding of both rows, which differs by machine."""


@dataclass
class Pair:
    """Both implementations of one checkpoint."""

    ours: JanusModel
    reference: torch.nn.Module

    @property
    def vocab_size(self) -> int:
        return self.ours.config.backbone.vocab_size


def _load_pair(directory: Path) -> Pair:
    from transformers import JanusForConditionalGeneration

    reference = JanusForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    ours = load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
    return Pair(ours, reference.eval())


@pytest.fixture(scope="module", params=[*SHAPES, "mini"])
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    mini_checkpoint: Path,
) -> Pair:
    if request.param == "mini":
        return _load_pair(mini_checkpoint)
    directory = tmp_path_factory.mktemp("shape")
    return _load_pair(save_tiny_checkpoint(directory, SHAPES[request.param]))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _random_ids(limit: int, count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(0, limit, (count,), generator=generator).tolist()


@torch.no_grad()
def test_text_logits_about_images_agree(pair: Pair, generator: torch.Generator) -> None:
    config, placeholder = pair.ours.config, pair.reference.config.image_token_id
    num_slots, side = config.vision.num_image_tokens, config.vision.image_size
    pixels = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
    words = [_random_ids(min(placeholder, 250), n, generator) for n in (3, 5, 9)]
    image = [placeholder] * num_slots
    ids = [*words[0], *image, *words[1], *image, *words[2]]
    expected = pair.reference(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]

    embeddings = pair.ours.encode_images(pixels)
    firsts = (3, 3 + num_slots + 5)
    driver = Driver(pair.ours)
    (hidden,) = driver.run([(Line(32), ids)], list(zip(firsts, embeddings, strict=True)))
    logits = pair.ours.text_logits(hidden)

    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < TOLERANCE
    assert expected.std() > 0.1, "the comparison needs logits that differ"


@torch.no_grad()
def test_code_logits_agree_over_the_whole_image(pair: Pair, generator: torch.Generator) -> None:
    """Conditional and unconditional sequence side by side, fed the same codes."""
    config, model = pair.ours.config, pair.reference
    num_codes = config.vq.num_codes
    prompts = torch.tensor([_random_ids(250, 12, generator) for _ in range(2)])
    codes = torch.randint(0, config.vq.codebook_size, (num_codes,), generator=generator)
    embedded = torch.cat(
        (
            model.get_input_embeddings()(prompts),
            model.prepare_embeddings_for_image_generation(codes[None]).expand(2, -1, -1),
        ),
        dim=1,
    )
    hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state[:, 11:-1]
    cond, uncond = model.model.generation_head(hidden)
    expected = uncond + GUIDANCE * (cond - uncond)

    driver = Driver(pair.ours)
    lines = [Line(0), Line(512)]
    states = driver.run([(line, row.tolist()) for line, row in zip(lines, prompts, strict=True)])
    guidance = torch.tensor([GUIDANCE])
    for index, code in enumerate(codes.tolist()):
        last = [state[-1:] for state in states]
        guided = pair.ours.guided_code_logits(last[0], last[1], guidance)
        assert (guided[0] - expected[index]).abs().max() < GUIDED_TOLERANCE
        for state, head in zip(last, (cond, uncond), strict=True):
            assert (pair.ours.code_logits(state)[0] - head[index]).abs().max() < TOLERANCE
        states = driver.run([(line, [pair.vocab_size + code]) for line in lines])


@torch.no_grad()
def test_greedy_guided_image_equals_generate(pair: Pair) -> None:
    """Code for code and pixel for pixel against `generate(generation_mode="image")`."""
    config, reference = pair.ours.config, pair.reference
    bos, boi, pad = _drawing_ids(pair)
    prompt = [bos, *range(40, 60), boi]
    expected_codes = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_mode="image",
        guidance_scale=4.0,
        do_sample=False,
    )
    uncond = [bos, *[pad] * (len(prompt) - 2), boi]

    driver = Driver(pair.ours)
    lines = [Line(100), Line(900)]
    states = driver.run([(lines[0], prompt), (lines[1], uncond)])
    codes: list[int] = []
    for _ in range(config.vq.num_codes):
        logits = pair.ours.guided_code_logits(states[0][-1:], states[1][-1:], torch.tensor([4.0]))
        codes.append(int(logits.argmax()))
        states = driver.run([(line, [pair.vocab_size + codes[-1]]) for line in lines])

    assert codes == expected_codes[0].tolist()
    decoded = reference.decode_image_tokens(expected_codes).float()
    levels = ((decoded + 1) / 2 * 255).clip(0, 255).to(torch.uint8)
    pixels = pair.ours.decode_codes(torch.tensor([codes]))
    side = config.vq.image_size
    assert pixels.shape == (1, side, side, 3)
    assert torch.equal(pixels, levels)


def _drawing_ids(pair: Pair) -> tuple[int, int, int]:
    generation = pair.reference.generation_config
    return (
        generation.bos_token_id,
        generation.generation_kwargs["boi_token_id"],
        generation.pad_token_id,
    )


@torch.no_grad()
def test_greedy_text_equals_generate(pair: Pair) -> None:
    prompt = [pair.reference.generation_config.bos_token_id, *range(30, 50)]
    expected = pair.reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=24,
    )[0, len(prompt) :].tolist()

    driver, line = Driver(pair.ours), Line(64)
    (state,) = driver.run([(line, prompt)])
    tokens: list[int] = []
    # It ends at EOS, which a trained model says before the limit.
    for _ in expected:
        tokens.append(int(pair.ours.text_logits(state[-1:]).argmax()))
        (state,) = driver.run([(line, tokens[-1:])])
    assert tokens == expected


@torch.no_grad()
def test_encoding_inverts_decoding_as_the_original_search_does(
    pair: Pair, generator: torch.Generator
) -> None:
    """deepseek's search normalises latents and codebook; transformers' does neither."""
    config, vq = pair.ours.config, pair.reference.model.vqmodel
    side = config.vq.image_size
    pixels = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
    latents = torch.nn.functional.normalize(vq.quant_conv(vq.encoder(pixels)), dim=1)
    codebook = torch.nn.functional.normalize(vq.quantize.embedding.weight, dim=1)
    distances = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, config.vq.code_dim), codebook)
    codes = pair.ours.encode_codes(pixels)
    assert codes.tolist() == distances.argmin(1).view(2, -1).tolist()


def test_special_ids_of_the_tiny_tokenizer_are_its_generation_config() -> None:
    tokenizer = build_tokenizer()
    assert [tokenizer.token_to_id(token) for token in (BOS, PAD, BEGIN_OF_IMAGE)] == [300, 302, 303]
