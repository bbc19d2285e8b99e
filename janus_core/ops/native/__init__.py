"""The C++ kernels, loaded through ctypes: the only place that knows of the library.

Owns the layouts of the structures both sides share and the calls; `kernels.h` says what is computed
and in which order. Knows no modules. Invariant: nothing is compiled here; a library that is missing
or speaks another interface is not used, and `problem()` says why.

Shape suffixes: T packed tokens, R rows, N query heads or outputs, K input width, H head width.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from janus_core.models.inputs import Span

LIBRARY = Path(__file__).with_name("_kernels.so")
INTERFACE = 1
FORMATS = {"fp16": 1, "int8": 2}
SCALAR = "scalar"
"""The name of the path for processors without AVX2."""

MAX_HEAD_DIM = 512
"""Widest head the attention kernel has room for."""

_Pointer = ctypes.c_void_p
_Int = ctypes.c_int64


class LinearStruct(ctypes.Structure):
    """`Linear` of kernels.h."""

    _fields_ = (
        ("weight", _Pointer),
        ("scale_N", _Pointer),
        ("bias_N", _Pointer),
        ("n", _Int),
        ("k", _Int),
        ("format", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` of api.cpp."""

    _fields_ = (
        ("input_norm_D", _Pointer),
        ("post_norm_D", _Pointer),
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
    )


class StepStruct(ctypes.Structure):
    """`Step` of api.cpp."""

    _fields_ = (
        *((name, _Pointer) for name in ("x_TD", "hidden_TD", "layers", "final_norm_D")),
        *((name, _Pointer) for name in ("rotary_P2H", "positions_T", "cache_positions_T")),
        *((name, _Pointer) for name in ("spans", "kv_L2KPH")),
        *((name, _Int) for name in ("num_tokens", "num_spans", "num_layers", "width")),
        *((name, _Int) for name in ("mlp_width", "num_heads", "num_kv_heads", "head_dim")),
        ("num_positions", _Int),
        ("eps", ctypes.c_float),
        ("is_half", ctypes.c_int32),
    )


class CacheStruct(ctypes.Structure):
    """`Cache` of kernels.h."""

    _fields_ = (
        ("kv", _Pointer),
        ("num_kv_heads", _Int),
        ("num_positions", _Int),
        ("head_dim", _Int),
        ("is_half", ctypes.c_int32),
    )


class Native:
    """The library with one instruction set chosen.

    Tensors passed in are fp32, contiguous and on the CPU, unless a method says otherwise. Methods
    raise MemoryError where the library found no room. Safe from any thread, but not in a process
    forked from one that has computed: as with torch, the threads of OpenMP do not come along.
    """

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self.path = path
        self._library = library
        self._path = path.encode()

    @property
    def has_vectors(self) -> bool:
        """Whether this instruction set is one the kernels are fast with. The plain C++ is not: at
        two rows and fp16, oneDNN's fp32 was measured to be 17 times as fast."""
        return self.path != SCALAR

    def pack(
        self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, *, format: str
    ) -> "PackedWeight":
        """A weight in one of `FORMATS`. The same bytes serve every instruction set."""
        code, (n, k) = FORMATS[format], weight_NK.shape
        weight_NK = weight_NK.detach().float().contiguous()
        num_bytes = self._library.janus_packed_bytes(code, n, k)
        packed = torch.empty(num_bytes, dtype=torch.uint8)
        scale_N = torch.ones(n)
        self._library.janus_pack(
            code,
            weight_NK.data_ptr(),
            n,
            k,
            packed.data_ptr(),
            scale_N.data_ptr(),
            torch.get_num_threads(),
        )
        bias_N = None if bias_N is None else bias_N.detach().float().contiguous()
        return PackedWeight(packed, scale_N, bias_N, n=n, k=k, code=code)

    def linear(self, weight: "PackedWeight", x_RK: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`, `[R, N]`."""
        x_RK = x_RK.contiguous()
        out_RN = torch.empty(len(x_RK), weight.n)
        if len(x_RK):
            status = self._library.janus_linear(
                self._path,
                weight.reference,
                x_RK.data_ptr(),
                len(x_RK),
                out_RN.data_ptr(),
                torch.get_num_threads(),
            )
            _check(status)
        return out_RN

    def attend(
        self, q_TNH: torch.Tensor, kv_2KPH: torch.Tensor, spans: ctypes.Array[ctypes.c_int64]
    ) -> torch.Tensor:
        """Attention of rows in the order of `spans` (`pack_spans`); the pool may be fp16. Only the
        last two dimensions of `q_TNH` must be contiguous."""
        num_tokens, num_heads, head_dim = q_TNH.shape
        _, num_kv_heads, num_positions, _ = kv_2KPH.shape
        out_TNH = torch.empty(num_tokens, num_heads, head_dim)
        cache = CacheStruct(
            kv_2KPH.data_ptr(),
            num_kv_heads,
            num_positions,
            head_dim,
            kv_2KPH.dtype == torch.float16,
        )
        status = self._library.janus_attend(
            self._path,
            q_TNH.data_ptr(),
            q_TNH.stride(0),
            num_heads,
            ctypes.byref(cache),
            spans,
            len(spans) // 4,
            out_TNH.data_ptr(),
            torch.get_num_threads(),
        )
        _check(status)
        return out_TNH

    def step(self, step: StepStruct) -> None:
        """All layers and the final norm; the caller keeps alive what `step` points to."""
        _check(self._library.janus_step(self._path, ctypes.byref(step), torch.get_num_threads()))


class PackedWeight:
    """A weight of the library's, with everything it points to."""

    def __init__(
        self,
        packed: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        *,
        n: int,
        k: int,
        code: int,
    ) -> None:
        self.n, self.k = n, k
        self._tensors = (packed, scale_N, bias_N)
        bias = None if bias_N is None else bias_N.data_ptr()
        self.struct = LinearStruct(packed.data_ptr(), scale_N.data_ptr(), bias, n, k, code, 0)
        self.reference = ctypes.byref(self.struct)


def pack_spans(spans: Sequence[Span]) -> ctypes.Array[ctypes.c_int64]:
    """The spans as the library reads them: `Span` of api.cpp."""
    values = [v for s in spans for v in (s.first, s.num_tokens, s.slot_start, s.context)]
    return (ctypes.c_int64 * len(values))(*values)


def load(path: str | None = None) -> Native | None:
    """The kernels for the best instruction set of this processor, or for the one named; None where
    there is none."""
    library = _library()
    if isinstance(library, str):
        return None
    available = paths()
    name = path or available[0]
    return Native(library, name) if name in available else None


def paths() -> list[str]:
    """The instruction sets this processor has kernels for, the best first."""
    library = _library()
    if isinstance(library, str):
        return []
    names: list[str] = []
    while name := library.janus_path(len(names)):
        names.append(name.decode())
    return names


def problem() -> str | None:
    """Why there are no kernels; None if there are."""
    library = _library()
    return library if isinstance(library, str) else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The open library, or why it cannot be used."""
    if not LIBRARY.is_file():
        return "not compiled at installation (is there a C++ compiler?)"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        interface = library.janus_interface()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded: {error}"
    if interface != INTERFACE:
        return f"{LIBRARY.name} was compiled from other sources: install the package again"
    int32, text = ctypes.c_int32, ctypes.c_char_p
    library.janus_path.argtypes, library.janus_path.restype = [int32], text
    library.janus_packed_bytes.argtypes = [int32, _Int, _Int]
    library.janus_packed_bytes.restype = _Int
    library.janus_pack.argtypes = [int32, _Pointer, _Int, _Int, _Pointer, _Pointer, int32]
    library.janus_pack.restype = None
    library.janus_linear.argtypes = [text, _Pointer, _Pointer, _Int, _Pointer, int32]
    library.janus_attend.argtypes = [
        *(text, _Pointer, _Int, _Int, _Pointer, _Pointer, _Int, _Pointer, int32)
    ]
    library.janus_step.argtypes = [text, _Pointer, int32]
    return library


def _check(status: int) -> None:
    if status:
        raise MemoryError("The kernels found no room for a step.")
