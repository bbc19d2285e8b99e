"""The HTTP edge: OpenAI's shapes over one engine, and the life of the server process.

Owns everything a client sees: routes, schemas, errors, streams, metrics. Knows no tensors: it
talks to the pipeline in plain dataclasses, and nothing in this package imports torch. Invariant:
importing it is cheap and does nothing; work starts in `run` (a process) or in
`server.app.create_app` (a test).
"""

import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings

__all__ = ["run"]

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter from one that wants it. The engine gives it up for
every operation it computes, hundreds in a step; with Python's 5 ms, each of them might wait so long
behind an event loop that is busy refusing."""

logger = logging.getLogger(__name__)


def run(settings: "Settings") -> int:
    """Load the model, serve until SIGTERM or SIGINT, drain; return the exit code.

    What can go wrong at once goes wrong before the imports that take seconds. Raises ParameterError
    for an address that cannot be had, CheckpointError and ParameterError for a model.
    """
    from server.early_exit import exit_on_signals
    from server.heap import loading
    from server.listener import bind
    from server.logs import configure_logging

    exit_on_signals()
    configure_logging(settings.log_level, style=settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logger.info("Settings: %s", settings.model_dump_json(exclude_none=True))
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, port=settings.port))
        metrics_listener = None
        if settings.metrics_port is not None:
            host = settings.metrics_host or settings.host
            metrics_listener = stack.enter_context(bind(host, port=settings.metrics_port))
        logger.info("Loading %s", settings.model or "the embedded model")
        with loading():
            from server.lifecycle import load_pipeline, serve

            pipeline = load_pipeline(settings)
        return serve(pipeline, settings, listener=listener, metrics_listener=metrics_listener)
