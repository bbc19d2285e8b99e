"""A server with planted leaks: what a soak that is worth running must find.

Each request leaves some memory behind, each twentieth a descriptor, and one in fifty is forgotten.
Started like `python -m server`.
"""

import os
import sys

from server.metrics import Metrics
from server.middleware import RequestContext

LEAK_BYTES = 16 * 1024

kept = []


def plant() -> None:
    """Make every request leak."""
    report, http = RequestContext._report, Metrics.http

    def leaking(self, *args, **kwargs):
        kept.append(bytearray(os.urandom(LEAK_BYTES)))
        if len(kept) % 20 == 0:
            kept.append(open(os.devnull, "rb"))  # noqa: SIM115 - this is the leak
        report(self, *args, **kwargs)

    def forgetful(self, *args, **kwargs):
        if len(kept) % 50:
            http(self, *args, **kwargs)

    RequestContext._report, Metrics.http = leaking, forgetful


if __name__ == "__main__":
    plant()
    from server.cli import main

    sys.exit(main())
