"""What an exception in the engine means for those who did not cause it.

Owns the kinds of faults and the error that a request ends with; knows neither plans nor tensors.
Invariant: only an exception of the device's runtime can end the process. No text that a client
sent is ever read for that, because whatever quotes it is no RuntimeError of CUDA.
"""

from enum import Enum

import torch

from janus_core.errors import StepError, TransientStepError

LOST_DEVICE = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid program counter",
    "invalid address space",
    "unspecified launch failure",
    "hardware stack error",
    "launch timed out",
    "uncorrectable ecc error",
    "unknown error",
)
"""CUDA's words for errors that stick: every later call in this process fails with the same one
(CUDA runtime API, `cudaError_t`: "this leaves the process in an inconsistent state")."""

RUNTIMES = ("cuda error", "hip error", "triton error [cuda]", "cudnn error", "cublas error")

NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",
)
"""Of CUDA, of torch's allocator on a CPU (two platforms), of cuBLAS and cuDNN."""

RETRY_MEMORY_S = 5.0
"""When to come back after a fault that the request need not have caused: some others have ended by
then."""


class Fault(Enum):
    """Whose fault an exception is, as far as it says."""

    REQUEST = "request"
    NUMBERS = "numbers"
    MEMORY = "memory"
    DEVICE = "device"


def fault_of(error: BaseException) -> Fault:
    """What kind of fault an exception reports. NUMBERS is never raised: the samples say it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Fault.MEMORY
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        is_runtime = any(name in text for name in RUNTIMES)
        if is_runtime and any(words in text for words in LOST_DEVICE):
            return Fault.DEVICE
        if any(words in text for words in NO_MEMORY):
            return Fault.MEMORY
    return Fault.REQUEST if error.__cause__ is None else fault_of(error.__cause__)


def error_of(fault: Fault) -> StepError:
    """What a request ends with that failed although it was computed alone."""
    if fault is Fault.MEMORY:
        return TransientStepError(
            "There is not enough memory for this request now.", retry_after_s=RETRY_MEMORY_S
        )
    if fault is Fault.NUMBERS:
        return StepError("The model's output was not a finite number.")
    return StepError("The request failed in the engine.")


def no_fault_of_the_request() -> TransientStepError:
    """What a request ends with that failed when nothing else could be computed either."""
    return TransientStepError("The engine computes nothing now.", retry_after_s=RETRY_MEMORY_S)
