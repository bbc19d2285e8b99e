"""A capture that behaves as CUDA's: operations are recorded once, and replayed without Python.

Owns the tape, operations of a step that can be recorded, and the way to an engine that uses both.
Invariant: what the host reads while a tape is recorded is refused, as it is during a capture, where
it would be the value of that moment for ever; and so are operations whose result has a shape of its
own.

Shape suffixes as in `janus_core/ops/cuda/decode_ops.py`; L positions up to the reach.
"""

from collections.abc import Callable

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from janus_core.engine.graphs import Capture, StepGraphs
from janus_core.engine.settings import EngineSettings
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.models.rows import RowsModel
from janus_core.ops import sampling
from janus_core.ops.cuda.decode_ops import Draws, Rows
from janus_core.ops.cuda.eager_ops import EagerOps

READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero")
"""Operations for which the host waits for a device."""

READERS = ("tolist", "item", "numpy", "cpu", "__int__", "__float__", "__bool__", "__index__")
"""Methods that read without an operation where the memory is the host's already."""


class Refused(RuntimeError):
    """What CUDA would say: operation not permitted when stream is capturing."""


class Tape(TorchDispatchMode):
    """Records what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable, tuple, dict, object]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        is_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        if name in READS or is_mask:
            raise Refused(f"{function} makes the host wait")
        result = function(*args, **(kwargs or {}))
        self._calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """The same operations on the same memory; what they made then is made anew."""
        made: dict[int, torch.Tensor] = {}

        def now(value: object) -> object:
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        with torch.inference_mode():
            for function, args, kwargs, result in self._calls:
                fresh = function(*tree_map(now, args), **tree_map(now, kwargs))
                for old, new in zip(_tensors(result), _tensors(fresh), strict=True):
                    made[id(old)] = new


class _NoReads(TorchFunctionMode):
    """Refuses `READERS`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READERS:
            raise Refused(f"{function.__name__} makes the host wait")
        return function(*args, **(kwargs or {}))


def record(work: Callable[[], None]) -> Callable[[], None]:
    """As `CudaCapture`: warm up, then record, which computes nothing that lasts on a device; here
    it computes the same once more, over idle rows."""
    work()
    tape = Tape()
    with _NoReads(), tape:
        work()
    return tape.replay


def _tensors(result: object) -> list[torch.Tensor]:
    values = result if isinstance(result, tuple | list) else [result]
    return [value for value in values if isinstance(value, torch.Tensor)]


class RecordedOps(EagerOps):
    """The twins, without those of their steps that ask the host."""

    def attend(self, q_RNH: torch.Tensor, kv_2KPH: torch.Tensor, rows: Rows) -> torch.Tensor:
        num_heads, num_kv_heads, num_positions = q_RNH.shape[1], *kv_2KPH.shape[1:3]
        l_L = torch.arange(min(rows.reach, num_positions), device=q_RNH.device)
        place_RL = (rows.slot_starts_R[:, None] + l_L).clamp(max=num_positions - 1)
        keys_KRLH, values_KRLH = kv_2KPH.to(q_RNH.dtype)[:, :, place_RL].unbind(0)
        q_KRGH = q_RNH.unflatten(1, (num_kv_heads, num_heads // num_kv_heads)).transpose(0, 1)
        scores_KRGL = (q_KRGH @ keys_KRLH.transpose(-1, -2)) * q_RNH.shape[2] ** -0.5
        beyond_R1L = (l_L >= rows.contexts_R[:, None])[:, None]
        weights_KRGL = scores_KRGL.masked_fill(beyond_R1L, -torch.inf).softmax(dim=-1)
        # What is not seen may be no number, which no weight of zero would hide.
        seen_KRLH = values_KRLH.masked_fill(beyond_R1L.transpose(1, 2), 0.0)
        return (weights_KRGL @ seen_KRLH).transpose(0, 1).flatten(1, 2)

    def noise(self, draws: Draws, *, num_tokens: int) -> torch.Tensor:
        """Of seeds and places in tensors, as the kernel has them."""
        steps_I = (draws.places_I + 1) * sampling._signed(sampling._GAMMA)
        keys_I = sampling._mix_tensor(sampling._mix_tensor(draws.seeds_I) + steps_I)
        bits_IC = sampling._bits_tensor(keys_I, num_tokens)
        minus_uniform_IC = ((bits_IC + 0.5) * -(2.0**-32)).clamp(min=2.0**-24 - 1.0)
        return -(-minus_uniform_IC.log1p()).log()


def run_on_graphs(
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: type[StepGraphs] = StepGraphs,
    ops: type[EagerOps] = RecordedOps,
    capture: Capture = record,
) -> list[StepGraphs]:
    """Let engines built from now on use graphs; returns where they will be found."""
    made: list[StepGraphs] = []

    def new(
        model: JanusModel, kv: KvPool, settings: EngineSettings, *, spare_start: int
    ) -> StepGraphs:
        graphs = kind(
            RowsModel(model, kv, ops=ops()),
            capture=capture,
            spare_start=spare_start,
            is_deterministic=settings.deterministic,
        )
        made.append(graphs)
        return graphs

    monkeypatch.setattr("janus_core.engine.memory.new_step_graphs", new)
    return made
