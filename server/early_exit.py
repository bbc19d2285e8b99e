"""What SIGTERM and SIGINT do before the server listens.

Owns the handlers until the server installs its own; knows nothing of what is loaded. Without them
the first process of a container would not hear SIGTERM at all. Invariant: the process ends with 0,
at once: nobody is served yet, and nothing has to be put in order.
"""

import logging
import os
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)


def exit_on_signals() -> None:
    """Install the handlers; without effect outside the main thread, where none can be."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    del frame
    logger.warning("%s: exiting before the start was complete.", signal.Signals(number).name)
    os._exit(0)
