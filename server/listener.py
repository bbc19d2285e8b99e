"""The listening socket.

Owns its address; knows no HTTP and imports nothing heavy. Invariant: an address in use is an error
before the model is loaded, which can take minutes, not after.
"""

import socket

from janus_core.errors import ParameterError


def bind(host: str, *, port: int) -> socket.socket:
    """Reserve an address; port 0 picks a free one. Raises ParameterError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ParameterError(
            f"Cannot listen on {host}:{port}: {error.strerror}.", param="port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where to connect to."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
