"""transformers as the oracle: what one request is answered with, greedily."""

import numpy as np
import torch

from janus_core.engine.request import ImageRequest, TextRequest
from tests.core.engine.support import Log, Requests

Oracle = dict[str, list[int]]
"""Ids or codes by request."""


@torch.no_grad()
def ask_oracle(reference, make: Requests, request: TextRequest | ImageRequest) -> list[int]:
    """Greedy ids or codes of one request, as transformers generates them."""
    input_ids = torch.tensor([request.token_ids])
    common = {"attention_mask": torch.ones_like(input_ids), "do_sample": False}
    if isinstance(request, ImageRequest):
        codes = reference.generate(
            input_ids, generation_mode="image", guidance_scale=request.guidance, **common
        )
        return codes[0].tolist()
    tokenizer = make.tokenizer
    marks = tokenizer.control_ids - {tokenizer.eos_id}
    if request.images:
        pixels = [torch.from_numpy(image.pixels_CHW) for image in request.images]
        common["pixel_values"] = torch.stack(pixels)
    output = reference.generate(
        input_ids,
        generation_mode="text",
        max_new_tokens=request.max_tokens,
        suppress_tokens=[*marks, *range(tokenizer.num_ids, make.model.config.backbone.vocab_size)],
        **common,
    )
    ids = output[0, len(request.token_ids) :].tolist()
    return ids[:-1] if ids[-1] == tokenizer.eos_id else ids


@torch.no_grad()
def levels_of(reference, codes: list[int]) -> np.ndarray:
    """Pixels 0..255 of codes, clipped and truncated, int64 so that they can be subtracted."""
    pixels = reference.decode_image_tokens(torch.tensor([codes]))[0].float()
    return ((pixels + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).numpy().astype(np.int64)


def assert_equal(log: Log, expected: Oracle, ids: list[str] | None = None) -> None:
    """Token for token, code for code."""
    for request_id in ids or list(expected):
        outcome = log[request_id]
        said = outcome.ids if request_id.startswith("t") else outcome.codes
        assert said == expected[request_id], request_id
