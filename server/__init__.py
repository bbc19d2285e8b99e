"""The HTTP edge: OpenAI's shapes over one engine, and the life of the server process.

Owns everything a client sees: routes, schemas, errors, streams, metrics. Knows no tensors: it
talks to the pipeline in plain dataclasses, and nothing in this package imports torch. Invariant:
importing it is cheap and does nothing; work starts in `run` (a process) or in
`server.app.create_app` (a test).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings

__all__ = ["run"]


def run(settings: "Settings") -> int:
    """Load the model, serve until SIGTERM or SIGINT, drain; return the exit code."""
    from server.lifecycle import run as run_server

    return run_server(settings)
