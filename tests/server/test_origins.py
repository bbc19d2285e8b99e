"""Names the server answers to, and pages of other sites: off unless a setting says so."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.datastructures import Headers

from janus_core.errors import ParameterError
from server.origins import parse_hosts, parse_origins
from server.settings import Settings
from tests.serving import ServerInThread

PAGE = "https://page.example.com"
KEY = {"authorization": "Bearer sk-of-ann"}


@pytest.fixture(scope="module")
def guarded(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(
        model=str(tiny_checkpoint),
        api_keys="ann:sk-of-ann",
        allowed_origins=PAGE,
        allowed_hosts="127.0.0.1, *.example.com",
    ) as running:
        yield running


def preflight(url: str, origin: str) -> httpx2.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    return httpx2.request("OPTIONS", f"{url}/v1/chat/completions", headers=headers)


def allowed(reply: httpx2.Response) -> list[str]:
    return [name for name in reply.headers if name.startswith("access-control-allow-")]


def test_pages_on_the_list_may_ask(guarded: ServerInThread) -> None:
    reply = preflight(guarded.url, PAGE)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in reply.headers
    for headers, status in ((KEY, 200), ({}, 401)):
        reply = httpx2.get(f"{guarded.url}/v1/models", headers=headers | {"origin": PAGE})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in reply.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin",
    ["null", "https://evil.example", "http://page.example.com", f"{PAGE}.evil.example", "", "*"],
)
def test_no_other_page_is_told_anything(guarded: ServerInThread, origin: str) -> None:
    assert "access-control-allow-origin" not in preflight(guarded.url, origin).headers
    reply = httpx2.get(f"{guarded.url}/v1/models", headers=KEY | {"origin": origin})
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["null", PAGE])
def test_by_default_no_page_is(client: httpx2.Client, origin: str) -> None:
    assert not allowed(preflight(str(client.base_url), origin))
    assert not allowed(client.get("/v1/models", headers={"origin": origin}))


def test_a_form_of_a_page_on_the_list_is_taken(guarded: ServerInThread, client) -> None:
    foreign = {"sec-fetch-site": "cross-site", "origin": PAGE}
    for target, extra, status in ((guarded.url, KEY, 400), (str(client.base_url), {}, 403)):
        reply = httpx2.post(f"{target}/v1/ask", data={"x": "y"}, headers=foreign | extra)
        assert reply.status_code == status
    evil = foreign | {"origin": "https://evil.example"}
    reply = httpx2.post(f"{guarded.url}/v1/ask", data={"x": "y"}, headers=evil | KEY)
    assert reply.status_code == 403


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("a.example.com", True),
        ("A.B.EXAMPLE.COM.:1", True),
        ("example.com", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("localhost", False),
        ("", False),
        ("a.example.com/health", False),
        ("evil.example?.example.com", False),
    ],
)
def test_names_the_server_answers_to(guarded: ServerInThread, host: str, is_known: bool) -> None:
    reply = httpx2.get(f"{guarded.url}/v1/models", headers=KEY | {"host": host})
    assert reply.status_code == (200 if is_known else 421)
    assert httpx2.get(f"{guarded.url}/livez", headers={"host": host}).status_code == 200


def test_two_hosts_are_none() -> None:
    hosts = parse_hosts("[::1],*.example.com")
    one, two = (b"host", b"[::1]:80"), (b"host", b"evil.example")
    assert hosts.allows(Headers(raw=[one]))
    assert not hosts.allows(Headers(raw=[one, two]))
    assert not hosts.allows(Headers(raw=[]))


@pytest.mark.parametrize("text", ["null", "example.com", f"{PAGE}/", f"{PAGE}/a", f"{PAGE},", ""])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parse_origins(text)
    assert refused.value.param == "allowed_origins"


@pytest.mark.parametrize("text", ["http://a", "a:80", "a,,b", "*", "[::1", "a b", "a/b", "a..b"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parse_hosts(text)
    assert refused.value.param == "allowed_hosts"


def test_any_page_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as refused:
        Settings(allowed_origins="*")
    assert refused.value.param == "allowed_origins"
    for keys in ({"api_keys": "sk-of-ann"}, {"api_keys_file": tmp_path / "keys"}):
        assert Settings(allowed_origins="*", **keys).allowed_origins == "*"
