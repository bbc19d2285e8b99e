"""A server in a process of its own that computes slowly, so that a test can kill it in the middle.

Prints its address, then serves until it is killed.
"""

import sys

import pytest

from tests.serving import ROOT, ServerInThread
from tests.ui.conftest import slow_down


def main() -> None:
    """Serve the embedded checkpoint at the pace of a large model."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        ServerInThread(model=str(ROOT / "weights" / "janus-mini")) as server,
    ):
        slow_down(server, monkeypatch, step_s=0.1)
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        server.wait(timeout_s=600)


if __name__ == "__main__":
    main()
