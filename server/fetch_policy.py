"""Which addresses images may be fetched from: the URL as a client wrote it, the host, the IP.

Owns the only parser of such URLs and the rules; opens no connection and asks no name server.
Invariant: what this accepts is dialled as it was checked. There is one reading of a URL, and an
address is refused unless it is known to be an ordinary public one: Python's `is_global` alone also
passes addresses that carry a private one inside (NAT64, 6to4, IPv4-compatible) and multicast.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal
from urllib.parse import quote, urljoin

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARS = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}
FIRST_FREE_PORT = 1024
"""Below it, ports belong to other protocols (mail, shells), which must not be talked into."""

_MAX_HOST_CHARS = 253  # RFC 1035, 2.3.4
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.I | re.S
)
_AUTHORITY = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<host>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?", re.I
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label like this makes the host an IPv4 address in some notation (WHATWG URL, 3.5)."""
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
"""Where parsers are known to disagree, and what would break a request line."""
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

_IPV6_UNICAST = IPv6Network("2000::/3")  # all that has ever been assigned (IANA)
_SPECIAL: tuple[Network, ...] = (
    # Protocol assignments (Teredo among them), documentation, 6to4, documentation.
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")),
    # Protocol assignments, 6to4 relays, benchmarks, multicast, reserved.
    *map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3")),
)
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        # Most clouds, Alibaba, Oracle, Azure, AWS over IPv6, Google over IPv6.
        (
            *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
            *("fd00:ec2::254", "fd20:ce::254"),
        ),
    )
)
"""Services that hand out a machine's credentials: refused in any network, allowed or not."""


Reason = Literal["address", "host", "port", "redirect", "scheme", "url"]
"""What of a URL is against the rules: an address it leads to (or there is none), the name of its
host, its port, where it redirects to or how often, its scheme, or its form."""


class RefusedError(Exception):
    """The URL must not be fetched. `message` is safe to show: it says nothing about networks, while
    `reason` is for the operator only."""

    def __init__(self, message: str, *, reason: Reason = "url") -> None:
        super().__init__(message)
        self.message = message
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, read once. `host` is in lower case and without brackets; `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def address(self) -> Address | None:
        """The host as an address, if it is one."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in its one notation."""
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched. No schemes: nothing.

    `domains` are host names, or `*.` and a name for all below it; None allows any. `networks` may
    be dialled although they are not public.
    """

    schemes: frozenset[str] = frozenset()
    domains: tuple[str, ...] | None = None
    networks: tuple[Network, ...] = ()

    def target(self, url: str) -> Target:
        """Read and check a URL. Raises RefusedError."""
        target = parse_url(url)
        if target.scheme not in self.schemes:
            allowed = " and ".join(sorted(self.schemes))
            raise RefusedError(f"Images are fetched from {allowed} URLs only.", reason="scheme")
        if target.port < FIRST_FREE_PORT and target.port not in DEFAULT_PORTS.values():
            raise RefusedError(f"Images are not fetched from port {target.port}.", reason="port")
        if self.domains is not None and not _is_among(target.host, self.domains):
            raise RefusedError("Images are not fetched from this host.", reason="host")
        return target

    def redirect(self, target: Target, location: str) -> Target:
        """Where `target` redirects to, checked like any other URL. Raises RefusedError."""
        invalid = RefusedError("The image's host redirects to an invalid URL.", reason="redirect")
        if _FORBIDDEN.search(location):  # before urljoin, which silently drops some
            raise invalid
        try:
            joined = urljoin(target.url, location)
        except ValueError:
            raise invalid from None
        following = self.target(joined)
        if target.scheme == "https" and following.scheme != "https":
            raise RefusedError("The image's host redirects from https to http.", reason="redirect")
        return following

    def allows(self, address: Address) -> bool:
        """Whether `address` may be dialled."""
        if address in _METADATA:
            return False
        return is_public(address) or any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether `address` is an ordinary address of the public internet, and nothing inside it."""
    if address.version == 6 and address not in _IPV6_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _SPECIAL)


def parse_url(url: str) -> Target:
    """Read a URL strictly: whatever two parsers could read differently is refused.

    That is: control characters, spaces, backslashes, credentials, hosts beyond ASCII, addresses in
    any but the usual notation. Letters beyond ASCII in the path are percent-encoded. Raises
    RefusedError.
    """
    if len(url) > MAX_URL_CHARS:
        raise RefusedError(f"The image's URL has more than {MAX_URL_CHARS} characters.")
    found = _URL.fullmatch(url)
    if found is None or _FORBIDDEN.search(url):
        raise RefusedError("The image's URL is not valid.")
    scheme = found["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise RefusedError("Images are fetched from https URLs only.", reason="scheme")
    if "@" in found["authority"]:
        raise RefusedError("The image's URL must not hold credentials.")
    authority = _AUTHORITY.fullmatch(found["authority"])
    if authority is None:
        raise RefusedError("The host in the image's URL is not valid.")
    port = int(authority["port"] or DEFAULT_PORTS[scheme])
    if not 0 < port < 2**16:
        raise RefusedError("The port in the image's URL is not valid.")
    host = _ipv6(authority["ipv6"]) if authority["ipv6"] else _host(authority["host"].lower())
    return Target(scheme, host, port, _path(found["target"]))


def parse_networks(text: str | None) -> tuple[Network, ...]:
    """Networks in CIDR notation, separated by commas. Raises ValueError."""
    return tuple(ipaddress.ip_network(each) for each in _listed(text))


def parse_domains(text: str | None) -> tuple[str, ...] | None:
    """Host names separated by commas, each with `*.` before it or not. Raises ValueError."""
    if text is None:
        return None
    names = tuple(name.lower() for name in _listed(text))
    for name in names:
        if not all(map(_LABEL.fullmatch, name.removeprefix("*.").split("."))):
            raise ValueError("not a list of host names")
    return names


def _listed(text: str | None) -> Iterable[str]:
    return (each.strip() for each in (text or "").split(",") if each.strip())


def _is_among(host: str, domains: tuple[str, ...]) -> bool:
    return any(
        host.endswith(domain[1:]) if domain.startswith("*.") else host == domain
        for domain in domains
    )


def _ipv6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise RefusedError("The host in the image's URL is not valid.") from None


def _host(text: str) -> str:
    """A host name or an IPv4 address in four decimal numbers."""
    labels = text.split(".")
    if len(text) > _MAX_HOST_CHARS or not all(map(_LABEL.fullmatch, labels)):
        raise RefusedError("The host in the image's URL is not valid.")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(text))
        except ValueError:
            raise RefusedError("The host in the image's URL is not valid.") from None
    return text


def _path(target: str) -> str:
    try:
        encoded = quote(target, safe=_PRINTABLE)
    except UnicodeEncodeError:  # half a surrogate pair
        raise RefusedError("The image's URL is not valid.") from None
    return encoded if encoded.startswith("/") else f"/{encoded}"
