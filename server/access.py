"""Who may do what, and how much of it: keys for every route but those listed here.

Owns the lists of what is open and what is the administrator's; knows no route's work. Invariants:
the decision is made on the path the router will see and on nothing else a client sends, and what is
not listed needs a key, whether there is a route or not.
"""

import base64
import binascii
import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_core.errors import RateLimitError
from server.errors import INVALID_REQUEST, PERMISSION, ErrorReply, reply_for
from server.keys import Keyring
from server.origins import HostNames
from server.principal import Principal, attach_principal
from server.rate_limits import RateLimits
from server.record import record_in

PROBES = frozenset({"/livez", "/readyz", "/health", "/ping"})
"""Asked by machines that have no key, and name whatever host they like."""

OPEN_PATHS = PROBES | {"/"}
"""Beside them, the page that asks for a key."""

OPEN_PREFIXES = ("/ui/",)
"""The files of that page: a browser sends no key for them."""

_PICTURE = re.compile(r"/v1/images/img_[A-Za-z0-9_-]{32}/content")
"""A kept picture: its id cannot be guessed, and is the key to it, so that a browser can show it."""

METRICS_PATH = "/metrics"
ADMIN_PREFIX = "/admin/"
BASIC_PREFIX = "/sdapi/"
"""Clients of AUTOMATIC1111's API know HTTP Basic only. Nowhere else: a browser would send such
credentials by itself, whichever page told it to."""

_FREE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Looking costs nothing: only what asks for work counts towards a key's limits."""

_MISSING = "This server needs an API key, sent as `Authorization: Bearer KEY`."
_WRONG = "The API key is not valid."

MISDIRECTED = ErrorReply(
    421, INVALID_REQUEST, "This server does not answer to the name in Host.", code="unknown_host"
)
FORBIDDEN = ErrorReply(
    403, PERMISSION, "This is for the administrator's key.", code="admin_key_required"
)


class Access:
    """Finds out who sends a request, and refuses what is not theirs or more than they may have."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyring: Keyring,
        limits: RateLimits,
        on_rejection: Callable[[str], None],
        hosts: HostNames | None = None,
        open_metrics: bool = False,
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._limits = limits
        self._hosts = hosts
        self._on_rejection = on_rejection
        self._open_paths = OPEN_PATHS | ({METRICS_PATH} if open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = self._principal(scope)
        if isinstance(found, ErrorReply):
            await self._refuse(found, scope, receive, send)
            return
        attach_principal(scope, found)
        record_in(scope).principal = found
        if self._is_open(scope["path"]) or scope["method"] in _FREE_METHODS:
            await self._app(scope, receive, send)
        else:
            await self._within_limits(found, scope, receive, send)

    async def _within_limits(
        self, principal: Principal, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer if the limits allow it, and say what they leave."""

        async def send_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._limits.headers(principal):
                    headers[name] = value
            await send(message)

        try:
            self._limits.enter(principal)
        except RateLimitError as error:
            await self._refuse(reply_for(error), scope, receive, send_limits)
            return
        try:
            await self._app(scope, receive, send_limits)
        finally:
            self._limits.leave(principal)

    async def _refuse(self, reply: ErrorReply, scope: Scope, receive: Receive, send: Send) -> None:
        assert reply.code is not None, "a refusal has a code"
        self._on_rejection(reply.code)
        await reply.response()(scope, receive, send)

    def _principal(self, scope: Scope) -> Principal | ErrorReply:
        """Who it is, or why not."""
        path, headers = scope["path"], Headers(scope=scope)
        if self._hosts is not None and path not in PROBES and not self._hosts.allows(headers):
            return MISDIRECTED
        if self._is_open(path):
            return self._keyring.anonymous
        is_admin_path = path.startswith(ADMIN_PREFIX) and self._keyring.has_admin
        if self._keyring.is_open and not is_admin_path:
            return self._keyring.anonymous
        key = _key_in(headers, takes_basic=path.startswith(BASIC_PREFIX))
        owner = None if key is None else self._keyring.owner_of(key)
        if owner is None:
            return _unauthorized(_MISSING if key is None else _WRONG)
        if is_admin_path and not owner.is_admin:
            return FORBIDDEN
        return owner

    def _is_open(self, path: str) -> bool:
        return (
            path in self._open_paths
            or path.startswith(OPEN_PREFIXES)
            or _PICTURE.fullmatch(path) is not None
        )


def _unauthorized(message: str) -> ErrorReply:
    return ErrorReply(
        401,
        INVALID_REQUEST,
        message,
        code="invalid_api_key",
        extra_headers={"www-authenticate": "Bearer"},
    )


def _key_in(headers: Headers, *, takes_basic: bool) -> str | None:
    """The key a client sent. None also if it sent several, of which a proxy may have checked
    another one."""
    given = headers.getlist("authorization")
    if len(given) != 1:
        return None
    scheme, _, value = given[0].partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() == "basic" and takes_basic:
        return _password(value)
    return None


def _password(credentials: str) -> str | None:
    """Of `user:password` in base64; the user's name means nothing."""
    try:
        text = base64.b64decode(credentials, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return text.partition(":")[2] or None
