"""The garbage collector while a process loads what it keeps until its end.

Owns when it runs; knows nothing of what is loaded. The libraries make half a million objects that
all stay. Looking through them again and again costs a quarter of the time to start, a second when
the process ends, and pauses while it serves. Invariant: afterwards the collector runs as before,
over what has been made since.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import and load inside: collected once at the end, and never looked at again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.collect()
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
