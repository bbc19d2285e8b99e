"""Row 8: no way around the key, by the Host header, by the form of the path, or by a sibling route.

GHSA-94f4-hr76-p5j6: what a server decides on must be what its router sees.
"""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.hardening.target import Target

KEY, ADMIN_KEY = "sk-row-eight-of-the-list", "sk-row-eight-of-the-admin"
BEARER = {"authorization": f"Bearer {KEY}"}

OPEN = {"/livez", "/readyz", "/health", "/ping", "/"}
"""Probes and the page, which asks for a key; its files are under `/ui/`."""

HOSTILE_HOSTS = [
    "x/health?",
    "127.0.0.1/livez#",
    "evil.example/readyz?",
    "x/../livez",
    "user@x/health",
    "[::1]/health?",
    "x:80/livez?x=",
    "/livez",
    "?",
    "livez",
    "x\\livez?",
    "127.0.0.1:8000/ui/",
]
HOSTILE_HEADERS = [
    {"x-forwarded-prefix": "/livez"},
    {"x-forwarded-host": "x/livez?"},
    {"x-original-url": "/livez"},
    {"x-rewrite-url": "/livez"},
    {"x-http-method-override": "OPTIONS"},
    {"forwarded": 'for="127.0.0.1";host="x/livez"'},
    {"authorization": "Bearer"},
    {"authorization": "Bearer null"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY.upper()}"},
    {"authorization": f"Basic {KEY}"},
    {"x-api-key": KEY},
    {"cookie": f"authorization={KEY}; key={KEY}"},
]
PATHS = [
    "//v1/models",
    "/v1//models",
    "/v1/./models",
    "/v1/%2e%2e/v1/models",
    "/v1%2fmodels",
    "/%2fv1/models",
    "/V1/models",
    "/v1/models/",
    "/v1/models;/livez",
    "/v1/models?x=/livez",
    f"/v1/models?key={KEY}&api_key={KEY}",
    "/v1/models#/livez",
    "/livez/../v1/models",
    "/livez/..%2fv1/models",
    "/livez%00/v1/models",
    "/livez/",
    "/livez/v1/models",
    "/livezv1/models",
    "/LIVEZ",
    "/health/../metrics",
    "/ui",
    "/uii/../v1/models",
    "http://127.0.0.1/v1/models",
    "http://x/livez",
    "//livez",
    "/v1/images/x/content",
    "/v1/images/img_/content",
    "/v1/images/img_../content",
    "/admin/state",
    "/admin//state",
    "/admin/../admin/state",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/nowhere",
]
INSIDE_THE_PAGE = ["/ui/../v1/models", "/ui/%2e%2e/v1/models", "/ui/..%2f..%2fv1/models"]
"""Of what is open by its beginning: without a key there is no answer of another route behind it."""


@pytest.fixture(scope="module")
def locked(_make_target: Callable[..., Target]) -> Iterator[Target]:
    target = _make_target(api_keys=f"ann:{KEY}", admin_key=ADMIN_KEY, headers=BEARER)
    yield target
    try:
        target.check_p0()
    finally:
        target.stop()


@pytest.fixture(scope="module")
def routes(locked: Target) -> list[tuple[str, str]]:
    """Method and path of everything the server has."""
    with locked.client() as client:
        paths = client.get("/openapi.json").raise_for_status().json()["paths"]
    found = [
        (method.upper(), re.sub(r"{.*?}", "x", path)) for path in paths for method in paths[path]
    ]
    assert len(found) > 10
    return found


def status(target: Target, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Sent as it is, by no library that would tidy it up. A HEAD has no body."""
    fields = {"host": target.host, "connection": "close", "content-type": "application/json"}
    fields |= {"content-length": "2"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reply = target.exchange(f"{method} {path} HTTP/1.1\r\n{head}\r\n{{}}".encode())
    match = re.match(rb"HTTP/1.1 (\d+)", reply)
    assert match, f"{method} {path} {headers}: {reply[:200]!r}"
    return int(match[1]), reply


def test_every_route_needs_a_key_whatever_the_host(
    locked: Target, routes: list[tuple[str, str]]
) -> None:
    opened = [
        (method, path, host)
        for method, path in routes
        if path not in OPEN and not path.startswith("/ui/")
        for host in [locked.host, *HOSTILE_HOSTS]
        if status(locked, method, path, {"host": host})[0] != 401
    ]
    assert not opened


def test_no_form_of_a_path_needs_none(locked: Target) -> None:
    opened = [path for path in PATHS if status(locked, "GET", path, {})[0] not in (400, 401)]
    assert not opened
    for path in INSIDE_THE_PAGE:
        code, reply = status(locked, "GET", path, {})
        assert code in (400, 401, 404), path
        assert b'"object"' not in reply


@pytest.mark.parametrize("headers", HOSTILE_HEADERS, ids=str)
def test_no_other_header_is_a_key(locked: Target, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/metrics", "/sdapi/v1/options"):
        assert status(locked, "GET", path, headers)[0] == 401


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND", "get"])
def test_no_method_needs_none(locked: Target, method: str) -> None:
    for path in ("/v1/models", "/v1/chat/completions", "/nowhere"):
        assert status(locked, method, path, {})[0] in (400, 401)


def test_two_keys_are_none(locked: Target) -> None:
    for second in ("Bearer wrong", f"Bearer {KEY}"):
        head = f"host: x\r\nauthorization: Bearer {KEY}\r\nauthorization: {second}\r\n"
        reply = locked.exchange(
            f"GET /v1/models HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode()
        )
        assert re.match(rb"HTTP/1.1 40[01]", reply)


def test_the_administrators_routes_are_not_everybodys(locked: Target) -> None:
    with locked.client() as client:
        for method, path in (("GET", "/admin/state"), ("POST", "/admin/sleep")):
            assert client.request(method, path).status_code == 403
            admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        assert client.get("/admin/state", headers=admin).status_code == 200


def test_a_key_opens(locked: Target, routes: list[tuple[str, str]]) -> None:
    """Or all of the above could be a server that refuses everything."""
    assert status(locked, "GET", "/v1/models", BEARER)[0] == 200
    for host in HOSTILE_HOSTS:
        code, _ = status(locked, "GET", "/v1/models", BEARER | {"host": host})
        assert code == 200
    refused = [
        path
        for method, path in routes
        if method == "GET" and status(locked, method, path, BEARER)[0] == 401
    ]
    assert not refused
