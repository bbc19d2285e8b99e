"""Where the model runs, in which dtype, how much room that leaves for the KV pool, and how many
tokens a step may have there.

Owns the defaults for a machine; knows sizes, but neither weights nor requests. Invariant: a choice
that this machine cannot honour is refused by name, never replaced in silence.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from janus_core.config import BackboneConfig, ModelConfig
from janus_core.engine.settings import (
    DEFAULT_SEQUENCES,
    DEFAULT_STEP_TOKENS,
    MIN_PREFILL_TOKENS,
    SPARE_PROMPT_TOKENS,
    EngineSettings,
    bytes_per_position,
)
from janus_core.errors import CheckpointError, ParameterError
from janus_core.ops.formats import PLAIN, Formats, choose_formats
from janus_core.ops.native import load as load_native
from janus_core.ops.native import paths, problem
from janus_core.threads import choose_threads

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# What a pool may take by default. On a GPU the process is alone; half-drawn pictures, the vision
# tower and the largest step need what is left. A CPU's memory belongs to others as well.
CUDA_SHARE = 0.85
CUDA_RESERVE_BYTES = 2**30
CPU_SHARE = 0.25
CPU_LIMIT_BYTES = 4 * 2**30

# Pictures at once on CUDA. With two rows each, reading the weights is still most of a step, so that
# one picture more costs the others little. Chosen, not measured.
CUDA_PICTURES = 64

# A chunk of a long prompt holds up everyone who is being answered. On a CPU it may do so for half a
# second; a core was measured at 64 GFLOP/s in large fp32 products, and a step has other work too.
CPU_STEP_S = 0.5
CPU_FLOPS_PER_THREAD = 5e10


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, the dtype of the network on it, and the formats that linear layers and the KV pool
    have instead."""

    device: torch.device
    dtype: torch.dtype
    formats: Formats = PLAIN

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the KV pool."""
        return self.formats.kv_dtype or self.dtype

    @property
    def formats_name(self) -> str:
        """The number formats and who computes them, in words."""
        return self.formats.describe(self.dtype)

    @property
    def dtype_name(self) -> str:
        """As settings spell it, for example `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def hardware(self) -> str:
        """The device in words, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """The placement two settings ask for; `auto` is CUDA in bfloat16 if there is one, else CPU in
    float32.

    `device` is auto, cpu, cuda or cuda:N; `dtype` is auto or a name in `DTYPES`. Raises
    ParameterError for other names, devices this machine lacks and float16 or bfloat16 where the
    device has no use for it.
    """
    chosen = _device(device)
    if dtype == "auto":
        return Placement(chosen, torch.float32 if chosen.type == "cpu" else torch.bfloat16)
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise ParameterError(f"dtype must be auto, {known}, but is {dtype}.", param="dtype")
    if dtype == "float16" and chosen.type == "cpu":
        raise ParameterError(
            "float16 is not supported on a CPU: use float32 or bfloat16.", param="dtype"
        )
    return Placement(chosen, DTYPES[dtype])


def with_formats(
    placement: Placement,
    *,
    weight_format: str = "auto",
    kv_format: str = "auto",
    native: bool = True,
    attention: str = "auto",
) -> Placement:
    """The placement with the number formats and the attention that four settings ask for. Raises
    ParameterError."""
    device = placement.device
    formats = choose_formats(
        weight_format,
        kv_format,
        device=device,
        dtype=placement.dtype,
        native=load_native() if native else None,
        attention=attention,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
    )
    return replace(placement, formats=formats)


def use_threads(threads: int) -> int:
    """Have torch, and what asks it, compute with as many threads from here on, in this thread and
    in engines that it builds; 0 is one per core (`janus_core.threads`). Returns their number."""
    torch.set_num_threads(choose_threads(threads))
    return torch.get_num_threads()


def describe_kernels() -> str:
    """What the C++ kernels can use here, or why there are none."""
    return problem() or f"C++, {', '.join(paths())}"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise ParameterError(
            f"device must be auto, cpu, cuda or cuda:N, but is {name}.", param="device"
        )
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ParameterError(
            f"device is {name}, but this installation of torch finds no CUDA device.",
            param="device",
        )
    number = int(index or 0)
    if number >= torch.cuda.device_count():
        raise ParameterError(
            f"device is {name}, but there are {torch.cuda.device_count()} CUDA devices.",
            param="device",
        )
    return torch.device("cuda", number)


def weights_bytes(
    shapes: Iterable[tuple[str, tuple[int, ...]]], placement: Placement
) -> tuple[int, int]:
    """What the tensors of a checkpoint, by name, take while they are read, and about what is left
    of that once linear layers have their format: matrices, but for the embeddings."""
    read = kept = 0.0
    for name, shape in shapes:
        size = math.prod(shape) * placement.dtype.itemsize
        is_linear = len(shape) == 2 and "embed" not in name
        read += size
        kept += size * placement.formats.shrinkage(placement.dtype) if is_linear else size
    return int(read), int(kept)


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated now: of the GPU, or of the machine within the process's
    limits."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    available = _meminfo_available()
    limit, used = _cgroup_memory()
    return available if limit is None else max(0, min(available, limit - used))


def memory_bytes(device: torch.device) -> dict[str, int]:
    """Memory of a CUDA device by kind: what tensors hold (allocated), what this process has taken
    for them (reserved), and what is free and there in all. Empty for a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }


def _meminfo_available() -> int:
    """What Linux could hand out without swapping; half of all memory where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup_memory() -> tuple[int | None, int]:
    """Limit (None without one) and use of a container's memory, of either version of cgroups."""
    for limit_file, use_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            limit, used = Path(limit_file).read_text().strip(), Path(use_file).read_text().strip()
        except OSError:
            continue
        return (None if limit == "max" else int(limit)), int(used)
    return None, 0


def fit(
    settings: EngineSettings,
    config: ModelConfig,
    placement: Placement,
    *,
    reserved_bytes: int = 0,
) -> EngineSettings:
    """The settings with the sequences at once, the size of the KV pool and the tokens of a step
    decided; call it once the weights are in place.

    What was asked for is left alone. Otherwise the pool gets its share of the free memory less
    `reserved_bytes` (weights still to be loaded), at most what `max_sequences` of full length could
    use. Raises CheckpointError if not even one picture fits.
    """
    is_asked = settings.kv_positions is not None or settings.kv_bytes is not None
    if is_asked:
        positions = settings.pool_positions(config, bytes_per_value=placement.kv_dtype.itemsize)
    else:
        positions = _free_positions(config, placement, reserved_bytes=reserved_bytes)
    chosen = _sequences(settings, config, placement, positions=positions)
    if chosen != settings.max_sequences:
        settings = replace(settings, max_sequences=chosen)
    if settings.step_token_budget is None:
        tokens = _step_tokens(config.backbone, placement, max_sequences=settings.max_sequences)
        settings = replace(settings, step_token_budget=tokens)
    if is_asked:
        return settings
    most = settings.max_sequences * config.backbone.max_positions
    return replace(settings, kv_positions=min(positions, most))


def _free_positions(config: ModelConfig, placement: Placement, *, reserved_bytes: int) -> int:
    """What the pool may have. Raises CheckpointError if that is less than one picture needs."""
    per_position = bytes_per_position(config.backbone, placement.kv_dtype.itemsize)
    free = free_bytes(placement.device) - reserved_bytes
    if placement.device.type == "cuda":
        budget = int((free - CUDA_RESERVE_BYTES) * CUDA_SHARE)
    else:
        budget = min(int(free * CPU_SHARE), CPU_LIMIT_BYTES)
    positions = budget // per_position
    # A guided picture is two sequences; half as much again holds their prompts and a little text.
    least = 3 * config.vq.num_codes
    if positions < least:
        raise CheckpointError(
            f"Not enough memory on {placement.device}: {max(free, 0) / 2**20:.0f} MiB are free "
            f"beside the weights, of which the KV pool may take {max(budget, 0) / 2**20:.0f}; one "
            f"picture needs {least * per_position / 2**20:.0f}. Free some memory, choose a smaller "
            "model, or set kv_positions."
        )
    return positions


def _sequences(
    settings: EngineSettings, config: ModelConfig, placement: Placement, *, positions: int
) -> int:
    """Sequences at once, if nobody says how many: on a CPU few, because each takes time of all
    others; on CUDA `CUDA_PICTURES` beside what is kept for text, or as many as the pool has room
    for."""
    if settings.is_sized or placement.device.type != "cuda":
        return settings.max_sequences
    wanted = math.ceil(2 * CUDA_PICTURES / (1.0 - settings.text_reserve))
    per_sequence = min(config.vq.num_codes + SPARE_PROMPT_TOKENS, config.backbone.max_positions)
    return max(DEFAULT_SEQUENCES, min(wanted, positions // per_sequence))


def _step_tokens(backbone: BackboneConfig, placement: Placement, *, max_sequences: int) -> int:
    """Tokens of a step: on a CPU as many as take `CPU_STEP_S`, but enough for prefill to go on
    beside `max_sequences` rows."""
    tokens = DEFAULT_STEP_TOKENS
    if placement.device.type == "cpu":
        heads = 2 * (backbone.num_heads + backbone.num_kv_heads) * backbone.head_dim
        weights = backbone.num_layers * backbone.width * (heads + 3 * backbone.mlp_width)
        flops_per_s = torch.get_num_threads() * CPU_FLOPS_PER_THREAD
        tokens = min(tokens, int(CPU_STEP_S * flops_per_s / (2 * weights)))
    return max(tokens, max_sequences + MIN_PREFILL_TOKENS)
