"""API keys: how they are written down, and whose a key is.

Owns the digests; knows no HTTP. Invariants: a key is kept as its SHA-256 digest only, no error and
no `repr` shows one, and how long a comparison takes depends on nothing but the number of keys.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from janus_core.errors import ParameterError
from server.principal import ANONYMOUS, Limits, Principal

ADMIN = Principal("admin", "admin", is_admin=True)

_RESERVED = frozenset({ADMIN.name, ANONYMOUS.name})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-+\--9;-~]+")
"""Visible ASCII but the comma and the colon, which separate."""

_LIMIT = re.compile(r"(requests_per_minute|tokens_per_minute|concurrent_requests)=([1-9]\d{0,11})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as the settings have it. Only its digest is kept."""

    digest: bytes = field(repr=False)
    name: str
    limits: dict[str, int]


class Keyring:
    """Keys and whose they are. Without any it lets everybody pass as one anonymous principal."""

    def __init__(
        self, entries: Iterable[Entry] = (), *, admin_key: str | None = None, limits: Limits
    ) -> None:
        """`limits` hold for the keys whose entries do not say otherwise."""
        self._owners: list[tuple[bytes, Principal]] = [
            (entry.digest, Principal(entry.name, entry.name, replace(limits, **entry.limits)))
            for entry in entries
        ]
        self.is_open = not self._owners
        self.has_admin = admin_key is not None
        self.anonymous = replace(ANONYMOUS, limits=limits)
        if admin_key is not None:
            self._owners.append((digest_of(admin_key), ADMIN))
        owners = {principal for _, principal in self._owners}
        if len({principal.name for principal in owners}) < len(owners):
            raise ParameterError("Keys of one name have different limits.", param="api_keys")
        digests = [digest for digest, _ in self._owners]
        if len(set(digests)) < len(digests):
            raise ParameterError("A key is given twice.", param="api_keys")

    def owner_of(self, key: str) -> Principal | None:
        """Whose the key is. Every key is compared, whichever fits."""
        digest = digest_of(key)
        owner = None
        for known, principal in self._owners:
            if hmac.compare_digest(known, digest):
                owner = principal
        return owner


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def parse_list(text: str, *, param: str) -> list[Entry]:
    """`key` or `name:key`, separated by commas. Raises ParameterError."""
    return _entries([part.split() for part in text.split(",")], param=param)


def read_file(path: Path) -> list[Entry]:
    """A file with one key in a line: `key` or `name:key`, and behind it limits of its own such as
    `requests_per_minute=60`. Empty lines and those that begin with # do not count.

    Raises ParameterError, which names lines and shows none.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ParameterError(
            f"The file of keys {path} cannot be read: {reason}.", param="api_keys_file"
        ) from None
    lines = [[] if line.startswith("#") else line.split() for line in text.splitlines()]
    entries = _entries(lines, param="api_keys_file", may_be_empty=True)
    if not entries:
        # An empty file would leave the server open to everybody.
        raise ParameterError(f"The file of keys {path} has no keys.", param="api_keys_file")
    return entries


def check_key(key: str, *, param: str, what: str) -> None:
    """Refuse what no header could carry as it is. Raises ParameterError, which does not show it."""
    if not _KEY.fullmatch(key):
        raise ParameterError(
            f"{what} must be visible ASCII without commas and colons.", param=param
        )


def _entries(
    lines: Sequence[Sequence[str]], *, param: str, may_be_empty: bool = False
) -> list[Entry]:
    entries = []
    for number, words in enumerate(lines, start=1):
        if words:
            entries.append(_entry(words, number=number, param=param))
        elif not may_be_empty:
            raise ParameterError(f"Key {number} of {param} is empty.", param=param)
    return entries


def _entry(words: Sequence[str], *, number: int, param: str) -> Entry:
    """Messages name the place and not the words: one of them is a secret."""
    name, colon, key = words[0].rpartition(":")
    if not colon:
        name = f"key-{number}"
    if not _NAME.fullmatch(name):
        raise ParameterError(
            f"The name of key {number} of {param} must be up to 64 letters, digits, dots, "
            "underscores and dashes.",
            param=param,
        )
    if name in _RESERVED:
        raise ParameterError(f"{name} cannot be the name of a key.", param=param)
    check_key(key, param=param, what=f"Key {number} of {param}")
    limits: dict[str, int] = {}
    for word in words[1:]:
        found = _LIMIT.fullmatch(word)
        if found is None:
            raise ParameterError(
                f"What follows key {number} of {param} must be requests_per_minute=N, "
                "tokens_per_minute=N or concurrent_requests=N.",
                param=param,
            )
        limits[found[1]] = int(found[2])
    return Entry(digest_of(key), name, limits)
