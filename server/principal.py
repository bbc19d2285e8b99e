"""Who sent a request: the owner of an API key, or everybody where there are no keys.

Owns the name, the tenant and the limits that go with a key; knows neither keys nor their digests,
so that it can be logged. Invariant: `tenant` is what salts the caches and what shares are fair
between, and two principals with one tenant are one client.
"""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

_KEY = "janus.principal"
"""Where the middleware leaves the principal in the ASGI scope."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None is as much as the server has.

    `tokens_per_minute` counts what the engine computes: tokens of prompts and answers, and codes of
    pictures.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a key. `name` is from the server's settings, never from a client."""

    name: str
    tenant: str
    limits: Limits = Limits()
    is_admin: bool = False


ANONYMOUS = Principal("anonymous", "")
"""Whoever asks for what needs no key."""


def attach_principal(scope: Scope, principal: Principal) -> None:
    """Leave `principal` in an ASGI scope."""
    scope[_KEY] = principal


def principal_of(request: Request) -> Principal:
    """Who sent the HTTP request being answered."""
    return principal_in(request.scope) or ANONYMOUS


def principal_in(scope: Scope) -> Principal | None:
    """The principal of an ASGI scope; None before it is known, and of what was refused."""
    principal = scope.get(_KEY)
    assert principal is None or isinstance(principal, Principal)
    return principal
