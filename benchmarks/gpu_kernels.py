"""Every kernel of a step against its twin in torch, and what a step must not do: wait.

Owns the inputs and the limits; part of `gpu_check.py`. Errors are relative to one more than the
twin's number, and to one more than the guidance where that multiplies them; that of a drawn code is
how far its score is below the best one's, since two codes may be as good as equal.

Shape suffixes: R rows, D model width, E width of queries, keys and values together, N heads, H head
width, P pool positions, M inner width, I pictures, C codes.
"""

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_model import CONFIGS, SLOT, batch, random_model
from benchmarks.gpu_report import Check, largest
from janus_core.config import ModelConfig
from janus_core.engine.ahead import CodeCopy
from janus_core.engine.graphs import Picture
from janus_core.models.kv_pool import KvPool
from janus_core.models.rows import RowsModel
from janus_core.ops.cuda.decode_ops import DecodeOps, Draws, Rows
from janus_core.ops.cuda.eager_ops import EagerOps
from janus_core.ops.rotary import rotary_table
from janus_core.ops.sampling import gumbel_noise

ROWS = (1, 7, 8, 9, 16, 64, 128)
LIMITS = ((torch.float32, 1e-4), (torch.bfloat16, 2e-2))
GUIDANCES = (5.0, 1.0, 0.0, 1.5, 9.0)
TEMPERATURES = (1.0, 0.0, 0.7, 1.3, 1e-6)
SCORE_LIMIT = 5e-5
"""Of scores up to about 20, whose noise differs in the last places (`docs/numerics.md`)."""

TWIN = EagerOps()

Outputs = tuple[torch.Tensor, ...]


@torch.inference_mode()
def check_kernels(check: Check) -> None:
    """All of them, at every number of rows and both dtypes."""
    config = CONFIGS["tiny" if check.is_rehearsal else "1b"]
    for dtype, limit in LIMITS:
        worst: dict[str, float] = {}
        for num_rows in ROWS:
            error = _attention_error(check, config, num_rows=num_rows, dtype=dtype)
            check.expect(f"attention, {dtype}, {num_rows} rows", error, limit)
            for name, work in _operations(check, config, num_rows=num_rows, dtype=dtype):
                pairs = zip(work(check.ops), work(TWIN), strict=True)
                error = max(_relative(mine, twin) for mine, twin in pairs)
                # A comparison, not a maximum: what is not a number must be kept.
                if not error <= worst.get(name, 0.0):
                    worst[name] = error
        for name in _NAMES:
            check.expect(f"{name}, {dtype}", worst.get(name, 0.0), limit)
        check.expect(f"draw, {dtype}", _draw_shortfall(check, config, dtype), SCORE_LIMIT)
    _check_noise(check)


def _attention_error(
    check: Check, config: ModelConfig, *, num_rows: int, dtype: torch.dtype
) -> float:
    heads, head_dim = config.backbone.num_heads, config.backbone.head_dim
    kv_2KPH = _random(check, 2, heads, num_rows * SLOT, head_dim, seed=num_rows).to(dtype)
    q_RNH = _random(check, num_rows, heads, head_dim, seed=num_rows + 1).to(dtype)
    rows = _rows(check, num_rows)
    return largest(check.ops.attend(q_RNH, kv_2KPH, rows) - TWIN.attend(q_RNH, kv_2KPH, rows))


_NAMES = ("norm and residual", "rotation and cache write", "SiLU", "GELU and guidance")


def _operations(
    check: Check, config: ModelConfig, *, num_rows: int, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[DecodeOps], Outputs]]]:
    """The other operations, each with all that it writes."""
    backbone = config.backbone
    x_RD, delta_RD = (
        _random(check, num_rows, backbone.width, seed=seed).to(dtype) for seed in (1, 2)
    )
    weight_D = _random(check, backbone.width, seed=3).to(dtype)
    width = (backbone.num_heads + 2 * backbone.num_kv_heads) * backbone.head_dim
    heads_RE = _random(check, num_rows, width, seed=4).to(dtype)
    shape = (2, backbone.num_kv_heads, num_rows * SLOT, backbone.head_dim)
    rotary_P21H = rotary_table(SLOT, backbone.head_dim, theta=10000.0, device=check.device)
    inner_RM = _random(check, num_rows, 2 * backbone.mlp_width, seed=5).to(dtype)
    pairs_RM = _random(check, 2 * num_rows, config.vq.head_width, seed=6).to(dtype)
    guidance_I = _cycle(check, GUIDANCES, num_rows)

    def norm(ops: DecodeOps) -> Outputs:
        sum_RD = x_RD.clone()
        return ops.add_rms_norm(sum_RD, delta_RD, weight_D, eps=1e-6), sum_RD

    def rotation(ops: DecodeOps) -> Outputs:
        kv_2KPH = torch.zeros(shape, dtype=dtype, device=check.device)
        return ops.rotate_and_store(heads_RE, rotary_P21H, _rows(check, num_rows), kv_2KPH), kv_2KPH

    def guidance(ops: DecodeOps) -> Outputs:
        return (ops.gelu_and_guide(pairs_RM, guidance_I) / (1 + guidance_I[:, None]),)

    works = (norm, rotation, lambda ops: (ops.silu_multiply(inner_RM),), guidance)
    yield from zip(_NAMES, works, strict=True)


def _draw_shortfall(check: Check, config: ModelConfig, dtype: torch.dtype) -> float:
    """How far the scores of drawn codes are below the best; a code where there is none is far."""
    num_pictures = 16
    logits_IC = 4 * _random(check, num_pictures, config.vq.codebook_size, seed=7)
    draws = _draws(check, num_pictures)
    codes_I, finite_I = check.ops.draw(logits_IC.to(dtype), draws)
    return _shortfall(logits_IC.to(dtype).float(), draws, codes_I, finite_I)


@torch.inference_mode()
def check_model_draw(check: Check) -> None:
    """The head, guidance and draw of a model together, against its own head and plain sampling."""
    config = CONFIGS["tiny" if check.is_rehearsal else "short"]
    model = random_model(config, device=check.device, dtype=torch.float32)
    kv = KvPool.allocate(config, 32, device=check.device, dtype=model.dtype)
    draws = _draws(check, num_pictures := 16)
    hidden_RD = _random(check, 2 * num_pictures, config.backbone.width, seed=8)
    codes_I, finite_I = RowsModel(model, kv, ops=check.ops).draw(hidden_RD, draws)
    logits_IC = model.guided_code_logits(
        hidden_RD[draws.cond_rows_I], hidden_RD[draws.uncond_rows_I], draws.guidance_I
    )
    # Guidance multiplies what two orders of additions differ by.
    shortfall = _shortfall(logits_IC, draws, codes_I, finite_I)
    check.expect("draw of a model, torch.float32", shortfall, 20 * SCORE_LIMIT)


def _shortfall(
    logits_IC: torch.Tensor, draws: Draws, codes_I: torch.Tensor, finite_I: torch.Tensor
) -> float:
    scores_IC = TWIN.scores(logits_IC, draws)
    best_I = scores_IC.max(dim=-1).values
    missing_I = best_I - scores_IC.gather(1, codes_I[:, None])[:, 0]
    return float(missing_I.max()) if finite_I.all() else float("inf")


def _check_noise(check: Check) -> None:
    if check.device.type != "cuda":
        return
    from janus_core.ops.cuda.triton_ops import TritonOps

    seeds = torch.arange(4, device=check.device) * 2**40
    mine = TritonOps().noise(seeds, torch.full_like(seeds, 575), num_tokens=16384)
    for name, device in (("this device", check.device), ("a CPU", torch.device("cpu"))):
        noise = gumbel_noise(seeds.tolist(), [575] * 4, num_tokens=16384, device=device)
        check.expect(f"noise against {name}", largest(mine.cpu() - noise.cpu()), 5e-6)


@torch.inference_mode()
def check_waits(check: Check) -> None:
    """Steps from graphs that were captured, with whatever makes the host wait an error."""
    config = CONFIGS["tiny" if check.is_rehearsal else "short"]
    dtype = torch.float32 if check.is_rehearsal else torch.bfloat16
    model = random_model(config, device=check.device, dtype=dtype)
    graphs, cpu = check.graphs(model, 4), torch.device("cpu")
    vocab_size = config.backbone.vocab_size
    prompts = batch([(slot, 0, 20) for slot in range(4)], vocab_size=vocab_size, device=cpu)
    step = batch([(slot, 20, 1) for slot in range(4)], vocab_size=vocab_size, device=cpu)
    pictures = [Picture(2 * i, 2 * i + 1, 5.0, 1.0, seed=i, place=0) for i in range(2)]

    def steps() -> None:
        graphs.draw(graphs.forward(prompts), pictures)
        launch = graphs.steps_ahead(step, pictures, num_steps=3)
        copies = [CodeCopy(*launch()) for _ in range(3)]
        assert len(copies) == 3

    steps()
    is_cuda, found = check.device.type == "cuda", ""
    if is_cuda:
        torch.cuda.synchronize(check.device)
        torch.cuda.set_sync_debug_mode("error")
    try:
        steps()
    except RuntimeError as error:
        found = f" ({error})"
    finally:
        if is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    check.expect(f"waits of the host within steps{found}", float(bool(found)), 0.0)


def _rows(check: Check, num_rows: int) -> Rows:
    """A slot for each row, with contexts of every kind."""
    starts_R = torch.arange(num_rows, device=check.device) * SLOT
    contexts_R = 1 + (97 * torch.arange(num_rows, device=check.device)) % SLOT
    return Rows(contexts_R - 1, starts_R + contexts_R - 1, starts_R, contexts_R, SLOT)


def _draws(check: Check, num_pictures: int) -> Draws:
    """Pairs of rows, with every guidance and temperature."""
    picture_I = torch.arange(num_pictures, device=check.device)
    return Draws(
        cond_rows_I=2 * picture_I,
        uncond_rows_I=2 * picture_I + 1,
        guidance_I=_cycle(check, GUIDANCES, num_pictures),
        temperatures_I=_cycle(check, TEMPERATURES[::-1], num_pictures),
        seeds_I=picture_I * 2**40 + 3,
        places_I=37 * picture_I,
    )


def _cycle(check: Check, values: tuple[float, ...], count: int) -> torch.Tensor:
    repeated = values * (count // len(values) + 1)
    return torch.tensor(repeated[:count], device=check.device)


def _random(check: Check, *shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(check.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=check.device)


def _relative(mine: torch.Tensor, twin: torch.Tensor) -> float:
    mine, twin = mine.float(), twin.float()
    return float(((mine - twin).abs() / (1 + twin.abs())).max())
