"""Fetching images: what is dialled is what was checked, and no host can take more than its share.

The hosts are real sockets on the loopback. 127.0.0.1 plays the public address, by an exception for
exactly this one; 127.0.0.2 is a private one that nobody may ever reach.
"""

import asyncio
import ipaddress
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from janus_core.errors import ImageInputError, QueueFullError
from server.fetch import Fetcher
from server.fetch_policy import Address, FetchPolicy, parse_domains, parse_networks
from tests.server import picture_host
from tests.server.picture_host import PictureHost, redirect, reply


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"
PICTURE = b"\x89PNG and so on"
MAX_BYTES = 100_000


class Names:
    """A name server: each name has its list of answers, the last one for good."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {f"{name}.example": list(texts) for name, texts in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[Address]:
        del port
        self.asked.append(host)
        if host not in self._answers:
            raise OSError("no such host")
        answers = self._answers[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [ipaddress.ip_address(text) for text in found]


@pytest.fixture
def public() -> Iterator[PictureHost]:
    with PictureHost(PUBLIC) as host:
        host.answers["/cat.png"] = reply(PICTURE)
        yield host


@pytest.fixture
def private(public: PictureHost) -> Iterator[PictureHost]:
    """On the same port as the public one, as if one name had two addresses."""
    with PictureHost(PRIVATE, port=public.port) as host:
        host.answers["/cat.png"] = reply(b"secret")
        yield host
        assert host.num_connections == 0, "somebody came"


@asynccontextmanager
async def fetcher(
    names: Names | None = None,
    *,
    schemes: Sequence[str] = ("http", "https"),
    networks: str = f"{PUBLIC}/32",
    domains: str | None = None,
    **changed: object,
) -> AsyncIterator[Fetcher]:
    options: dict = {
        "max_bytes": MAX_BYTES,
        "timeout_s": 1.0,
        "max_redirects": 3,
        "max_at_once": 32,
        "max_at_once_per_request": 4,
        "max_pending": 8,
        "observe": lambda _outcome, _duration_s: None,
        "on_blocked": lambda _reason: None,
        "resolve": names or Names(host=[[PUBLIC]]),
        # Trusts nobody; loading the system's certificates would take longer than most tests.
        "tls": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    }
    policy = FetchPolicy(
        frozenset(schemes), domains=parse_domains(domains), networks=parse_networks(networks)
    )
    made = Fetcher(policy, **(options | changed))
    try:
        yield made
    finally:
        await made.close()


async def fetched(made: Fetcher, url: str, *, max_total_bytes: int = 10**9) -> bytes:
    return (await made.fetch_all([(url, "image")], max_total_bytes=max_total_bytes))[url]


async def refused(made: Fetcher, url: str, *, max_total_bytes: int = 10**9) -> ImageInputError:
    with pytest.raises(ImageInputError) as caught:
        await fetched(made, url, max_total_bytes=max_total_bytes)
    assert caught.value.param == "image"
    # Nothing about addresses or the machinery.
    assert not any(text in caught.value.message for text in ("127.", "httpx", "Errno", "object at"))
    return caught.value


async def test_a_picture_comes_back(public: PictureHost):
    names = Names(host=[[PUBLIC]])
    async with fetcher(names) as made:
        assert await fetched(made, f"http://host.example:{public.port}/cat.png") == PICTURE
    assert names.asked == ["host.example"]
    (request,) = public.requests
    lines = request.strip().lower().split("\r\n")
    assert lines[0] == "get /cat.png http/1.1"
    assert sorted(lines[1:]) == [
        "accept-encoding: identity",
        "accept: image/*",
        "connection: close",
        f"host: host.example:{public.port}",
        "user-agent: janus-serve",
    ]


async def test_it_is_off_unless_enabled(public: PictureHost):
    async with fetcher(schemes=()) as made:
        error = await refused(made, f"http://{PUBLIC}:{public.port}/cat.png")
    assert error.code == "invalid_image_url"
    assert "not enabled" in error.message
    assert public.num_connections == 0


async def test_data_urls_are_left_alone():
    async with fetcher(schemes=()) as made:
        assert await made.fetch_all([("data:image/png;base64,AA==", "x")], max_total_bytes=1) == {}


async def test_the_environment_has_no_say(public: PictureHost, monkeypatch: pytest.MonkeyPatch):
    with PictureHost(PUBLIC) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{PUBLIC}:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        async with fetcher() as made:
            assert await fetched(made, f"http://host.example:{public.port}/cat.png") == PICTURE
        assert proxy.num_connections == 0


# Whom it dials.


async def test_a_private_address_is_not_dialled(public: PictureHost, private: PictureHost):
    """One text for a literal address, a name for it, a name with one good and one bad address, and
    a name that does not exist: whoever asks learns nothing."""
    names = Names(inside=[[PRIVATE]], mixed=[[PUBLIC, PRIVATE]], mapped=[[f"::ffff:{PUBLIC}"]])
    messages = set()
    async with fetcher(names) as made:
        for host in (PRIVATE, "inside.example", "mixed.example", "mapped.example", "no.example"):
            error = await refused(made, f"http://{host}:{private.port}/cat.png")
            messages.add((error.code, error.message))
    assert len(messages) == 1
    assert public.num_connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_inside_is_not_followed(
    public: PictureHost, private: PictureHost, status: int
):
    public.answers["/go"] = redirect(f"http://{PRIVATE}:{private.port}/cat.png", status)
    async with fetcher() as made:
        error = await refused(made, f"http://host.example:{public.port}/go")
    assert error.code == "invalid_image_url"


async def test_a_name_that_changes_its_mind_is_caught(public: PictureHost, private: PictureHost):
    """DNS rebinding: public when checked, private a moment later. There is one look-up a hop, so
    the second answer is seen by the second hop only, which checks it."""
    names = Names(rebind=[[PUBLIC], [PRIVATE]])
    url = f"http://rebind.example:{private.port}"
    async with fetcher(names) as made:
        assert await fetched(made, f"{url}/cat.png") == PICTURE
    assert names.asked == ["rebind.example"]
    public.answers["/go"] = redirect("/cat.png")
    names = Names(rebind=[[PUBLIC], [PRIVATE]])
    async with fetcher(names) as made:
        error = await refused(made, f"{url}/go")
    assert error.code == "invalid_image_url"
    assert names.asked == ["rebind.example"] * 2
    assert [request.split()[1] for request in public.requests] == ["/cat.png", "/go"]


async def test_redirects_are_followed_but_not_for_ever(public: PictureHost):
    names = Names(host=[[PUBLIC]], other=[[PUBLIC]])
    public.answers |= {
        "/3": redirect("2", 301),
        "/2": redirect(f"http://other.example:{public.port}/1", 307),
        "/1": redirect("/cat.png", 308),
        "/4": redirect("/3"),
    }
    async with fetcher(names) as made:
        assert await fetched(made, f"http://host.example:{public.port}/3") == PICTURE
        assert names.asked == ["host.example"] * 2 + ["other.example"] * 2
        error = await refused(made, f"http://host.example:{public.port}/4")
    assert "more than 3 times" in error.message


async def test_how_many_redirects_and_images_at_once_is_a_setting(public: PictureHost):
    now, most = [0], [0]

    def slow(connection: socket.socket) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.1)
        now[0] -= 1
        connection.sendall(reply(PICTURE))

    paths = [f"/{number}.png" for number in range(6)]
    public.answers |= dict.fromkeys(paths, slow) | {"/go": redirect("/cat.png")}
    urls = [f"http://host.example:{public.port}{path}" for path in paths]
    for limit in ({"max_at_once": 2}, {"max_at_once_per_request": 2}):
        most[0] = 0
        async with fetcher(max_redirects=0, **limit) as made:
            sources = [(url, "image") for url in urls]
            assert len(await made.fetch_all(sources, max_total_bytes=10**6)) == len(urls)
            assert most[0] == 2
            error = await refused(made, f"http://host.example:{public.port}/go")
            assert "more than 0 times" in error.message


async def test_a_redirect_away_from_the_allowed_hosts_is_not_followed(public: PictureHost):
    public.answers["/go"] = redirect(f"http://other.example:{public.port}/cat.png")
    names = Names(host=[[PUBLIC]], other=[[PUBLIC]])
    async with fetcher(names, domains="host.example") as made:
        await refused(made, f"http://host.example:{public.port}/go")
    assert names.asked == ["host.example"]


async def test_the_next_address_is_tried(public: PictureHost):
    """As hosts with an IPv6 address need it that the network does not route."""
    names = Names(host=[["127.0.0.3", PUBLIC]])
    async with fetcher(names, networks="127.0.0.0/8") as made:
        assert await fetched(made, f"http://host.example:{public.port}/cat.png") == PICTURE


# How much it takes.


TYPE = "Content-Type: image/png\r\n"
HTML = "Content-Type: text/html\r\n"
MANY_HEADERS = "".join(f"X-{i}: {'x' * 100}\r\n" for i in range(10_000))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(b"x" * (MAX_BYTES + 1)), "image_file_too_large"),
        (picture_host.announced(10**11), "image_file_too_large"),
        (picture_host.endless, "image_file_too_large"),
        (picture_host.trickle, "failed_to_download_image"),
        (picture_host.silent, "failed_to_download_image"),
        (picture_host.cut_short, "failed_to_download_image"),
        (lambda connection: connection.close(), "failed_to_download_image"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "failed_to_download_image"),
        (reply(b"", MANY_HEADERS), "failed_to_download_image"),
        (reply(PICTURE, f"{TYPE}Content-Encoding: gzip\r\n"), "failed_to_download_image"),
        (reply(PICTURE, status=404), "failed_to_download_image"),
        (reply(PICTURE, status=206), "failed_to_download_image"),
        (reply(PICTURE, status=302), "failed_to_download_image"),
        (reply(b"<html>", HTML), "unsupported_image_media_type"),
        (reply(PICTURE, ""), "unsupported_image_media_type"),
        (reply(b"x", f"{HTML}Refresh: 0; url=/cat.png\r\n"), "unsupported_image_media_type"),
        (reply(b""), "empty_image_file"),
    ],
)
async def test_bad_hosts_cost_little(public: PictureHost, answer: object, code: str):
    public.answers["/bad"] = answer
    started = time.monotonic()
    async with fetcher() as made:
        error = await refused(made, f"http://host.example:{public.port}/bad")
    assert error.code == code
    assert time.monotonic() - started < 3


async def test_the_limit_is_exact(public: PictureHost):
    public.answers["/most"] = reply(b"x" * MAX_BYTES)
    async with fetcher() as made:
        assert len(await fetched(made, f"http://host.example:{public.port}/most")) == MAX_BYTES


async def test_pictures_of_a_request_share_an_allowance(public: PictureHost):
    urls = [f"http://host.example:{public.port}/{i}" for i in range(3)]
    public.answers |= {f"/{i}": reply(b"x" * 1000) for i in range(3)}
    async with fetcher() as made:
        sources = [(url, "image") for url in urls]
        assert len(await made.fetch_all(sources, max_total_bytes=3000)) == 3
        with pytest.raises(ImageInputError, match="too large together") as caught:
            await made.fetch_all(sources, max_total_bytes=2999)
    assert caught.value.param == "image"


async def test_one_url_is_fetched_once(public: PictureHost):
    url = f"http://host.example:{public.port}/cat.png"
    async with fetcher() as made:
        found = await made.fetch_all([(url, "a"), (url, "b")], max_total_bytes=10**6)
    assert found == {url: PICTURE}
    assert public.num_connections == 1


async def test_all_urls_are_checked_before_the_first_is_fetched(public: PictureHost):
    sources = [
        (f"http://host.example:{public.port}/cat.png", "a"),
        ("http://user:x@host.example/", "b"),
    ]
    async with fetcher() as made:
        with pytest.raises(ImageInputError, match="credentials") as caught:
            await made.fetch_all(sources, max_total_bytes=10**6)
    assert caught.value.param == "b"
    assert public.num_connections == 0


async def test_waiting_requests_are_bounded_and_leave_nothing_behind(public: PictureHost):
    public.answers["/slow"] = picture_host.silent
    url = f"http://host.example:{public.port}/slow"
    async with fetcher(max_pending=2, timeout_s=30.0) as made:
        waiting = [asyncio.create_task(fetched(made, url)) for _ in range(2)]
        while public.num_connections < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError):
            await fetched(made, url)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await fetched(made, f"http://host.example:{public.port}/cat.png") == PICTURE


async def test_outcomes_are_counted(public: PictureHost):
    seen, blocked = [], []
    observe = lambda outcome, duration_s: seen.append(outcome)  # noqa: E731, ARG005
    async with fetcher(observe=observe, on_blocked=blocked.append) as made:
        await fetched(made, f"http://host.example:{public.port}/cat.png")
        await refused(made, f"http://{PRIVATE}/")
        await refused(made, "https://host.example:25/")
        await refused(made, f"http://host.example:{public.port}/nothing")
    assert seen == ["ok", "refused", "refused", "failed"]
    assert blocked == ["address", "port"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://inside.example/", "address"),
        ("http://nobody.example/", "address"),
        ("http://other.test/", "host"),
        ("http://host.example:25/", "port"),
        ("http://user@host.example/", "url"),
        ("http://host.example:99999/", "url"),
        ("http://host.example:{port}/away", "redirect"),
        ("http://host.example:{port}/round", "redirect"),
        ("http://host.example:{port}/inside", "address"),
    ],
)
async def test_what_is_not_fetched_is_counted_by_the_rule_that_forbids_it(
    public: PictureHost, url: str, reason: str
):
    public.answers["/round"] = redirect("/round")
    public.answers["/away"] = redirect("http://host.example/\\x")
    public.answers["/inside"] = redirect("http://inside.example/")
    blocked = []
    names = Names(host=[[PUBLIC]], inside=[[PRIVATE]])
    async with fetcher(names, domains="*.example", on_blocked=blocked.append) as made:
        await refused(made, url.format(port=public.port))
    assert blocked == [reason]


# Certificates.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For pictures.example, signed by itself, key included."""
    path = tmp_path_factory.mktemp("tls") / "pictures.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.example "
        "-addext subjectAltName=DNS:pictures.example"
    )
    made = subprocess.run(
        [*command.split(), "-keyout", path, "-out", path.with_suffix(".crt")], capture_output=True
    )
    assert made.returncode == 0, made.stderr
    with path.open("ab") as file:
        file.write(path.with_suffix(".crt").read_bytes())
    return path


async def test_the_certificate_is_checked_against_the_name(certificate: Path):
    """Although an address is dialled; and a connection made for one name never serves another."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    names = Names(pictures=[[PUBLIC]], other=[[PUBLIC]])
    with PictureHost(PUBLIC, tls=serving) as host:
        host.answers["/cat.png"] = reply(PICTURE)
        async with fetcher(names, tls=trusting) as made:
            url = f"https://pictures.example:{host.port}/cat.png"
            assert await fetched(made, url) == PICTURE
            error = await refused(made, f"https://other.example:{host.port}/cat.png")
            assert error.code == "failed_to_download_image"
            await refused(made, f"https://{PUBLIC}:{host.port}/cat.png")
        async with fetcher(names, tls=None) as made:
            await refused(made, url)
        assert len(host.requests) == 1


async def test_https_does_not_become_http(certificate: Path, public: PictureHost):
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    with PictureHost(PUBLIC, tls=serving) as host:
        host.answers["/go"] = redirect(f"http://pictures.example:{public.port}/cat.png")
        async with fetcher(Names(pictures=[[PUBLIC]]), tls=trusting) as made:
            error = await refused(made, f"https://pictures.example:{host.port}/go")
    assert "from https to http" in error.message
    assert public.num_connections == 0


# The system's own resolver.


@pytest.mark.parametrize("name", ["localhost", "0x7f000001", "no-such-host.invalid"])
async def test_the_system_resolver_is_checked_too(private: PictureHost, name: str):
    async with fetcher(resolve=None, networks="") as made:
        await refused(made, f"http://{name}:{private.port}/cat.png")


@pytest.mark.skipif(not has_ipv6(), reason="the loopback has no IPv6 address")
async def test_ipv6_addresses_are_dialled():
    with PictureHost("::1") as host:
        host.answers["/cat.png"] = reply(PICTURE)
        async with fetcher(networks="::1/128") as made:
            assert await fetched(made, f"http://[::1]:{host.port}/cat.png") == PICTURE
        assert f"host: [::1]:{host.port}" in host.requests[0].lower()
