"""Which names this server answers to, and which pages of other sites may use it from a browser.

Owns the two lists of the settings and what a name of them means; knows no routes and no keys.
Invariants: the origin `null`, which sandboxed pages of anybody have, is never on the list, and a
browser is never told to send credentials by itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from starlette.datastructures import Headers

from janus_core.errors import ParameterError

_NAME = re.compile(r"(?!.*\.\.)[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]{0,5})?")
_ORIGIN = re.compile(r"https?://[^/?#@\s\\,]+")

ANY = "*"

EXPOSED_HEADERS = (
    "openai-processing-ms",
    "retry-after",
    "x-janus-estimated-s",
    "x-janus-native-size",
    "x-request-id",
    "x-should-retry",
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
)
"""What a page may read of an answer, besides its body."""


@dataclass(frozen=True, slots=True)
class HostNames:
    """Names a server answers to; `*.example.com` is all below example.com."""

    names: frozenset[str]

    def allows(self, headers: Headers) -> bool:
        """Whether a request names one of them, once, in `Host`."""
        given = headers.getlist("host")
        found = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        if found is None:
            return False
        host = found["host"].removesuffix(".")
        if not _is_host(host):
            return False
        parts = host.split(".")
        above = (f"*.{'.'.join(parts[n:])}" for n in range(1, len(parts)))
        return host in self.names or any(name in self.names for name in above)


def parse_hosts(text: str) -> HostNames:
    """Names separated by commas. Raises ParameterError."""
    names = [part.strip().lower() for part in text.split(",")]
    for name in names:
        if not _is_host(name.removeprefix("*.")):
            raise ParameterError(
                f"allowed_hosts has {name[:100]!a}, which is no name of a host: write it without "
                "a scheme and a port.",
                param="allowed_hosts",
            )
    return HostNames(frozenset(names))


def parse_origins(text: str) -> Sequence[str]:
    """Origins as browsers send them, `https://example.com` or `http://localhost:3000`, separated
    by commas, or `*`. Raises ParameterError."""
    origins = [part.strip() for part in text.split(",")]
    for origin in origins:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ParameterError(
                f"allowed_origins has {origin[:100]!a}, which is no origin of a page: write "
                "https://example.com, without a path.",
                param="allowed_origins",
            )
    return origins


def _is_host(name: str) -> bool:
    if not name.startswith("["):
        return _NAME.fullmatch(name) is not None
    try:
        IPv6Address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return name.endswith("]")
