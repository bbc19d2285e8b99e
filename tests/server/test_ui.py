"""The files of the page: how they are sent, and that they can be switched off."""

import gzip
import re
from pathlib import Path

import httpx2
import pytest

from server.routes.ui import CONTENT_SECURITY_POLICY, FILES, MEDIA_TYPES
from tests.serving import ServerInThread

PLAIN = {"accept-encoding": "identity"}


def test_every_file_is_served_as_it_is(client: httpx2.Client):
    paths = sorted(FILES.iterdir())
    assert len(paths) > 10
    for path in paths:
        where = "/" if path.name == "index.html" else f"/ui/{path.name}"
        reply = client.get(where, headers=PLAIN)
        assert reply.content == path.read_bytes()
        assert reply.headers["content-type"] == MEDIA_TYPES[path.suffix]
        assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_nothing_but_this_server():
    policy = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data: blob:"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY


def test_nothing_is_written_into_the_page_itself():
    """Neither scripts nor styles, which the policy would refuse, nor another host."""
    index = (FILES / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style|style=|\son\w+=|https?://", index)
    for path in FILES.glob("*.css"):
        assert not re.search(r"@import|url\(", path.read_text("utf-8"))


def test_a_file_is_compressed_for_who_can_read_it(client: httpx2.Client):
    packed = client.build_request("GET", "/ui/style.css", headers={"accept-encoding": "br, gzip"})
    reply = client.send(packed, stream=True)
    raw = b"".join(reply.iter_raw())
    assert reply.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == (FILES / "style.css").read_bytes()
    assert len(raw) == int(reply.headers["content-length"]) < len(gzip.decompress(raw)) / 2
    assert "accept-encoding" in reply.headers["vary"].lower()
    for refused in ("identity", "gzip;q=0", "x-gzip"):
        reply = client.get("/ui/style.css", headers={"accept-encoding": refused})
        assert "content-encoding" not in reply.headers


def test_what_has_not_changed_is_not_sent_again(client: httpx2.Client):
    first = client.get("/")
    again = client.get("/", headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200
    assert first.headers["cache-control"] == "no-cache"


def test_a_head_has_no_body(client: httpx2.Client):
    reply = client.head("/")
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/none.js", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/..%2fapp.py"]
)
def test_there_is_nothing_else(client: httpx2.Client, path: str):
    reply = client.get(path)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "unknown_url"


def test_it_is_no_part_of_the_api(client: httpx2.Client):
    paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/ui")]


def test_without_the_page(tiny_checkpoint: Path):
    with ServerInThread(model=str(tiny_checkpoint), ui=False) as server, server.client() as client:
        assert client.get("/").status_code == 404
        assert client.get("/ui/main.js").status_code == 404
        assert client.get("/v1/models").status_code == 200
