"""The options of the CUDA path that are off by default: is each right here, and what does it cost?

Owns their checks and their table; part of `gpu_check.py`, which owns the report. An option that
this machine cannot honour is named with the engine's own reason. Errors of number formats are
distances from bfloat16, `1 - cosine`: they say what a format loses, and that nothing is broken.

Shape suffixes: R rows, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_model import CONFIGS, SLOT, batch, random_model
from janus_core.errors import ParameterError
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.ops.attention import choose_attention
from janus_core.ops.formats import Formats, choose_formats

if TYPE_CHECKING:
    from benchmarks.gpu_report import Check

StepTime = Callable[["Check", JanusModel, int, int], float]

OPTIONS = (
    {"kv_format": "fp8"},
    {"weight_format": "int8"},
    {"weight_format": "fp8"},
    {"weight_format": "int4"},
    {"attention": "xformers"},
)

LIMITS = {"kv_format fp8": 0.01, "weight_format int8": 1e-3, "weight_format fp8": 0.01}
"""Largest `1 - cosine` of a hidden vector, two layers deep. e4m3 has 3 bits of fraction: a relative
error of 2 ** -4 at most in each number. For int4 there is the next line."""

INT4_LIMIT = 0.05

STEP_ROWS, STEP_CONTEXT = (2, 32), 600


@torch.inference_mode()
def check_options(check: Check) -> list[tuple[str, Formats]]:
    """A mixed batch by each option against plain bfloat16; returns those that can be had here."""
    config = CONFIGS["tiny" if check.is_rehearsal else "short"]
    plain = _hidden(check, random_model(config, device=check.device, dtype=torch.bfloat16))
    found = []
    for option in OPTIONS:
        ((name, value),) = option.items()
        label = f"{name} {value}"
        try:
            formats = _formats(check, **option)
            model = random_model(config, device=check.device, dtype=torch.bfloat16, formats=formats)
            hidden_RD = _hidden(check, model)
        except ParameterError as error:
            check.say(f"| {label} | | | not here: {error} |")
            continue
        except Exception as error:
            # A package of others, with this device and this torch: the rest is checked anyway.
            check.num_failed += 1
            check.say(f"| {label} | | | **FAILED**: {type(error).__name__}: {error} |")
            continue
        distance_R = 1 - torch.cosine_similarity(hidden_RD, plain, dim=-1)
        limit = 1e-4 if name == "attention" else LIMITS.get(label, INT4_LIMIT)
        check.expect(f"{label} against bfloat16", float(distance_R.max()), limit)
        found.append((label, formats))
    return found


def _formats(
    check: Check, *, weight_format: str = "auto", kv_format: str = "auto", attention: str = "auto"
) -> Formats:
    if check.is_rehearsal and kv_format == "fp8":
        # A CPU can compute it, though no CPU is offered it.
        return Formats(kv_dtype=torch.float8_e4m3fn)
    device = check.device
    is_cuda = device.type == "cuda"
    return choose_formats(
        weight_format,
        kv_format,
        device=device,
        dtype=torch.bfloat16,
        native=None,
        attention=attention,
        capability=torch.cuda.get_device_capability(device) if is_cuda else (0, 0),
    )


def _hidden(check: Check, model: JanusModel) -> torch.Tensor:
    """Of the last tokens, fp32 `[R, D]`: prompts, then one token each, by graphs where the option
    has them, else by the model's own forward pass."""
    vocab_size, num_rows = model.config.backbone.vocab_size, 9
    prompts = [(row, 0, 20 + 7 * row) for row in range(num_rows)]
    steps = [(row, num_tokens, 1) for row, _, num_tokens in prompts]
    if model.attention_choice == "auto":
        graphs, cpu = check.graphs(model, num_rows), torch.device("cpu")
        graphs.forward(batch(prompts, vocab_size=vocab_size, device=cpu))
        return graphs.forward(batch(steps, vocab_size=vocab_size, device=cpu)).float()
    kv = KvPool.allocate(model.config, num_rows * SLOT, device=check.device, dtype=model.kv_dtype)
    model(batch(prompts, vocab_size=vocab_size, device=check.device), kv)
    return model(batch(steps, vocab_size=vocab_size, device=check.device), kv).float()


@torch.inference_mode()
def measure_options(
    check: Check,
    name: str,
    options: list[tuple[str, Formats]],
    *,
    step_s: StepTime,
    median_s: Callable[[Check, Callable[[], object]], float],
) -> None:
    """Steps of pictures by each format beside bfloat16; and the bodies of attention alone."""
    config = CONFIGS[name]
    check.say(f"\n### Options, {name}, context {STEP_CONTEXT}\n")
    check.say("| option | rows | step ms | against bfloat16 |\n|---|---|---|---|")
    base: dict[int, float] = {}
    weights = [(label, f) for label, f in options if f.attention == "auto"]
    for label, formats in [("bfloat16", Formats()), *weights]:
        model = random_model(config, device=check.device, dtype=torch.bfloat16, formats=formats)
        for num_rows in STEP_ROWS:
            taken_s = step_s(check, model, num_rows, STEP_CONTEXT)
            ratio = base.setdefault(num_rows, taken_s) / taken_s
            check.say(f"| {label} | {num_rows} | {taken_s * 1e3:.3f} | {ratio:.2f}x |")
        del model
    check.say("\n| attention of one layer, call by call | rows | ms |\n|---|---|---|")
    backbone = config.backbone
    bodies = [Formats(), *(f for _, f in options if f.attention != "auto")]
    for num_rows in STEP_ROWS:
        steps = [(row, STEP_CONTEXT - 1 - row, 1) for row in range(num_rows)]
        spans = batch(steps, vocab_size=backbone.vocab_size, device=check.device).spans
        one = replace(backbone, num_layers=1)
        kv = KvPool.allocate(one, num_rows * SLOT, device=check.device, dtype=torch.bfloat16)
        q_RNH = torch.zeros(
            (num_rows, backbone.num_heads, backbone.head_dim),
            dtype=torch.bfloat16,
            device=check.device,
        )
        for formats in bodies:
            body = choose_attention(formats, head_dim=backbone.head_dim)
            layout = body.arrange(spans, device=check.device)
            taken_s = median_s(
                check,
                lambda body=body, layout=layout, q=q_RNH, kv=kv: body.attend(
                    q, kv.layers[0], layout
                ),
            )
            check.say(f"| {body.name} | {num_rows} | {taken_s * 1e3:.3f} |")
