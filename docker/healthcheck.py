"""Exit 0 if the server in this container works. Uses the standard library only."""

import os
import sys
import urllib.error
import urllib.request


def main() -> int:
    """Ask `/health`; draining or a dead engine answer 503. Not `/readyz`: an engine that starts
    unhealthy containers again must leave one that has much to do alone."""
    url = f"http://127.0.0.1:{os.environ.get('JANUS_PORT', '8000')}/health"
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return 0 if response.status == 200 else 1
    except (urllib.error.URLError, TimeoutError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
