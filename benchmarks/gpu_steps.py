"""How long the parts of a picture take on a GPU, beside the floor that its own bandwidth sets.

Owns the tables of steps and of stages; part of `gpu_check.py`. The floor is what a step must read,
weights and the rows' keys and values, by the bandwidth of a large copy.
"""

from collections import deque
from collections.abc import Callable

import torch

from benchmarks.gpu_model import CONFIGS, SLOT, batch, random_model
from benchmarks.gpu_report import Check, median_s
from janus_core.engine.ahead import CodeCopy
from janus_core.engine.graphs import Picture
from janus_core.engine.settings import bytes_per_position
from janus_core.models.janus import JanusModel, vq_dtype
from janus_core.models.kv_pool import KvPool
from janus_core.models.picture_decoder import hasten_decoder

TABLE_ROWS = (2, 8, 32, 128)
CONTEXTS = (318, 600)
"""The mean and the longest context of a picture after a prompt of 30 tokens."""

FLOOR_SHARE = 0.6
"""What a step of one guided picture must reach of the floor."""


@torch.inference_mode()
def measure(check: Check, name: str) -> None:
    """Steps against the floor of this device's own bandwidth, then the other stages."""
    config = CONFIGS[name]
    dtype = torch.float32 if check.is_rehearsal else torch.bfloat16
    model = random_model(config, device=check.device, dtype=dtype)
    bandwidth = _bandwidth(check)
    check.say(f"\n## {name}, {dtype}, copy at {bandwidth / 1e12:.2f} TB/s\n")
    check.say("| rows | context | step ms | floor ms | share | s/image | images/s |")
    check.say("|---|---|---|---|---|---|---|")
    table_rows = (2, 8) if check.is_rehearsal else TABLE_ROWS
    num_codes = 576
    for num_rows in table_rows:
        for context in CONTEXTS:
            taken_s = step_s(check, model, num_rows, context)
            num_bytes = _step_bytes(model, num_rows=num_rows, context=context)
            floor_s = num_bytes / bandwidth
            if num_rows == 2:
                label = f"{name}: share of the floor at 2 rows, context {context}"
                check.bar(label, floor_s / taken_s, at_least=FLOOR_SHARE)
            check.say(
                f"| {num_rows} | {context} | {taken_s * 1e3:.3f} | {floor_s * 1e3:.3f} | "
                f"{floor_s / taken_s:.0%} | {num_codes * taken_s:.2f} | "
                f"{num_rows / 2 / (num_codes * taken_s):.1f} |"
            )
    check.say("\n| a step of 2 rows, read by the host | ms |\n|---|---|")
    for label, is_late in (("at once", False), ("while the next one runs", True)):
        check.say(f"| {label} | {_read_step_s(check, model, is_late=is_late) * 1e3:.3f} |")
    check.say("\n| stage | ms |\n|---|---|")
    for label, work in _stages(check, model):
        check.say(f"| {label} | {median_s(check, work) * 1e3:.2f} |")
    # Last, because it changes the model. CUDA's group norm wants the other layout, so that each
    # convolution is followed by a reordering: whether this gains anything is to be seen.
    hasten_decoder(model.vqmodel, dtype=vq_dtype(check.device, dtype))
    for label, work in _stages(check, model)[:2]:
        check.say(f"| {label}, channels last | {median_s(check, work) * 1e3:.2f} |")


def step_s(check: Check, model: JanusModel, num_rows: int, context: int) -> float:
    """One step of `num_rows / 2` guided pictures: rows, head and draw, without the host between."""
    num_steps = 2 if check.is_rehearsal else 16
    graphs = check.graphs(model, num_rows)
    chunks = [(row, context - 1, 1) for row in range(num_rows)]
    inputs = batch(chunks, vocab_size=model.config.backbone.vocab_size, device=torch.device("cpu"))
    pictures = [Picture(2 * i, 2 * i + 1, 5.0, 1.0, seed=i, place=0) for i in range(num_rows // 2)]
    return (
        median_s(check, lambda: graphs.run_ahead(inputs, pictures, num_steps=num_steps)) / num_steps
    )


def _read_step_s(check: Check, model: JanusModel, *, is_late: bool) -> float:
    """One step of a picture whose every code reaches the host: before the next step is launched, or
    one step later, as the engine does it."""
    num_steps = 2 if check.is_rehearsal else 16
    graphs = check.graphs(model, 2)
    inputs = batch(
        [(0, 300, 1), (1, 300, 1)],
        vocab_size=model.config.backbone.vocab_size,
        device=torch.device("cpu"),
    )
    pictures = [Picture(0, 1, 5.0, 1.0, seed=0, place=0)]

    def work() -> None:
        copies: deque[CodeCopy] = deque()
        step = graphs.steps_ahead(inputs, pictures, num_steps=num_steps)
        for _ in range(num_steps):
            copies.append(CodeCopy(*step()))
            if len(copies) > is_late:
                copies.popleft().wait()

    return median_s(check, work) / num_steps


def _step_bytes(model: JanusModel, *, num_rows: int, context: int) -> int:
    """What a step must read: the backbone, the head of the codes, and the rows' keys and values."""
    parts = (model.language_model, model.generation_head)
    weights = sum(p.numel() for part in parts for p in part.parameters())
    per_position = bytes_per_position(model.config.backbone, model.dtype.itemsize)
    return weights * model.dtype.itemsize + num_rows * context * per_position


def _stages(check: Check, model: JanusModel) -> list[tuple[str, Callable[[], object]]]:
    config, device = model.config, check.device
    side_px = config.vision.image_size
    pixels = torch.zeros(1, 3, side_px, side_px, device=device)
    codes = {n: torch.zeros(n, config.vq.num_codes, dtype=torch.int64) for n in (1, 8)}
    kv = KvPool.allocate(config, SLOT, device=device, dtype=model.dtype)
    prompt = batch([(0, 0, 600)], vocab_size=config.backbone.vocab_size, device=device)
    return [
        ("VQ decoding, 1 picture", lambda: model.decode_codes(codes[1])),
        ("VQ decoding, 8 pictures", lambda: model.decode_codes(codes[8])),
        ("SigLIP tower, 1 image", lambda: model.encode_images(pixels)),
        ("prefill of 600 tokens", lambda: model(prompt, kv)),
    ]


def _bandwidth(check: Check) -> float:
    """Bytes read and written per second by a large copy."""
    num_bytes = 2**20 if check.is_rehearsal else 2**32
    source = torch.empty(num_bytes, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_s(check, lambda: target.copy_(source))
