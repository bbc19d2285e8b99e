"""Whether steps run as graphs here: on CUDA, with kernels that agree with their twins.

Owns the decision and the check at start; `graphs.py` does the work. Invariants: triton is imported
on CUDA only; kernels that compute something else than their twins are never used; and kernels that
cannot run do not keep the engine from starting, unless a setting needs them.

Shape suffixes: R rows, N heads, H head width, P pool positions.
"""

import logging

import torch

from janus_core.engine.faults import Fault, fault_of
from janus_core.engine.graphs import CudaCapture, StepGraphs
from janus_core.engine.settings import EngineSettings
from janus_core.errors import ParameterError
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.models.rows import RowsModel
from janus_core.ops.cuda.decode_ops import SPLIT, DecodeOps, Rows
from janus_core.ops.cuda.eager_ops import EagerOps

MAX_ERROR = 0.05
"""Of attention over standard normal numbers, in bf16: its rounding is a tenth of it."""

SLOWER = "steps run call by call, several times slower."

logger = logging.getLogger(__name__)


def new_step_graphs(
    model: JanusModel, kv: KvPool, settings: EngineSettings, *, spare_start: int
) -> StepGraphs | None:
    """The graphs, or None where steps run call by call.

    Raises ParameterError if `settings.deterministic` cannot be kept on this device, or Triton's
    attention was asked for and cannot be had.
    """
    choice = model.attention_choice
    is_possible = settings.cuda_graphs and model.device.type == "cuda"
    is_wanted = is_possible and choice in ("auto", "triton")
    graphs = _captured(model, kv, settings, spare_start=spare_start) if is_wanted else None
    if graphs is not None:
        logger.info(
            "Steps run as CUDA graphs with Triton's kernels; %d are captured.", graphs.num_graphs
        )
        return graphs
    if choice == "triton":
        raise ParameterError(
            "attention triton runs in CUDA graphs: it needs cuda_graphs, and kernels that run and "
            "agree with their twins here.",
            param="attention",
        )
    if settings.deterministic:
        raise ParameterError(
            f"deterministic needs CUDA and Triton's kernels, which {model.device} does not have, "
            "or attention is set to something else. On a CPU in float32, rows do not depend on "
            "each other anyway.",
            param="deterministic",
        )
    return None


def _captured(
    model: JanusModel, kv: KvPool, settings: EngineSettings, *, spare_start: int
) -> StepGraphs | None:
    """Graphs, the usual ones captured; or None, and the log says why. A lost device is raised:
    without graphs it is as lost."""
    try:
        ops = _ops(model)
        if ops is None:
            return None
        graphs = StepGraphs(
            RowsModel(model, kv, ops=ops),
            capture=CudaCapture(model.device),
            spare_start=spare_start,
            is_deterministic=settings.deterministic,
        )
        graphs.capture_usual(settings.max_sequences)
    except Exception as error:
        # Whatever lacks for compiling and launching: a compiler, a place for its cache, a driver.
        if fault_of(error) is Fault.DEVICE:
            raise
        logger.exception("Triton's kernels cannot run: %s", SLOWER)
        return None
    return graphs


def _ops(model: JanusModel) -> DecodeOps | None:
    """Triton's kernels if they are installed and right on this device; raises what they raise."""
    try:
        from janus_core.ops.cuda.triton_ops import TritonOps
    except ImportError:
        logger.warning("Triton is not installed: %s", SLOWER)
        return None
    ops = TritonOps()
    error = attention_error(ops, model)
    if error <= MAX_ERROR:
        return ops
    logger.error("Triton's attention is off by %.3g on %s: %s", error, model.device, SLOWER)
    return None


@torch.inference_mode()
def attention_error(ops: DecodeOps, model: JanusModel) -> float:
    """The largest difference between attention by `ops` and by its twin, at the model's shapes."""
    backbone, device, dtype = model.config.backbone, model.device, model.dtype
    contexts = [1, 7, SPLIT, SPLIT + 1, 2 * SPLIT + 9]
    room = 3 * SPLIT
    generator = torch.Generator(device).manual_seed(0)
    kv_2KPH = torch.randn(
        (2, backbone.num_kv_heads, room * len(contexts), backbone.head_dim),
        generator=generator,
        device=device,
    ).to(model.kv_dtype)
    q_RNH = torch.randn(
        (len(contexts), backbone.num_heads, backbone.head_dim), generator=generator, device=device
    ).to(dtype)
    contexts_R = torch.tensor(contexts, device=device)
    starts_R = room * torch.arange(len(contexts), device=device)
    rows = Rows(contexts_R - 1, starts_R + contexts_R - 1, starts_R, contexts_R, max(contexts))
    difference = ops.attend(q_RNH, kv_2KPH, rows) - EagerOps().attend(q_RNH, kv_2KPH, rows)
    return float(difference.float().abs().max().nan_to_num(nan=torch.inf))
