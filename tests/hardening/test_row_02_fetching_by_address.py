"""Row 2: the server is not made to knock on doors behind its firewall.

Nine servers of this field had it, three of them twice: no check, a check of the first hop only, a
check by another parser than the client's, a check of another look-up than the one dialled.

Run in a network of its own, where canaries listen on the very addresses that must not be dialled,
and on a "public" one that redirects to them, and where a server of names counts the look-ups. Every
field of the API that takes an address is tried.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

import pytest

from tests.described import described_api
from tests.hardening.doors import FORMS, JSON, declared, knock
from tests.hardening.name_server import A, NameServer
from tests.hardening.target import GOOD_IMAGE, Target, png_bytes
from tests.serving import ROOT

INSIDE = "TEST_INSIDE_NETWORK"
PUBLIC = "93.184.216.34"
PRIVATE = ("169.254.169.254", "10.0.0.5", "172.16.0.9", "192.168.1.1", "100.100.100.200",
           "100.64.0.1", "192.0.0.192", "198.18.0.1", "168.63.129.16")  # fmt: skip
PRIVATE_V6 = ("fd00:ec2::254", "fe80::5", "64:ff9b::7f00:1", "2002:7f00:1::1", "fec0::1",
              "2001:db8::1", "3fff::1")  # fmt: skip
GOOD = png_bytes(GOOD_IMAGE)

URLS = (
    "http://169.254.169.254/latest/meta-data/", "http://127.0.0.1/", "http://127.0.0.1:{port}/",
    "http://localhost/", "http://localhost:{port}/metrics", "http://10.0.0.5/", "http://172.16.0.9/",
    "http://192.168.1.1/", "http://100.100.100.200/", "http://100.64.0.1/", "http://192.0.0.192/",
    "http://198.18.0.1/", "http://168.63.129.16/", "http://0.0.0.0/", "http://0/",
    "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/",
    "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/",
    "http://169.254.43518/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/", "http://[::ffff:169.254.169.254]/", "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:7f00:1::1]/",
    "http://[2002:a9fe:a9fe::]/", "http://[fd00:ec2::254]/", "http://[fe80::5%25lo]/",
    "http://[fe80::5]/", "http://[fec0::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/",
    "http://[ff02::1]/", "http://224.0.0.1/", "http://255.255.255.255/",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", "http://\u24dbocalhost/",
    "http://127\u30020\u30020\u30021/", "http://127.0.0.1\\@93.184.216.34/",
    "http://93.184.216.34\\@127.0.0.1/", "http://93.184.216.34@127.0.0.1/",
    "http://127.0.0.1#@93.184.216.34/",
    "http://x@93.184.216.34@127.0.0.1/", "http://93.184.216.34%2f@127.0.0.1/",
    "http://93.184.216.34:80@127.0.0.1/", "http://127.0.0.1\t/", "http://\t127.0.0.1/",
    " http://127.0.0.1/", "http://127.0.0.1./", "http://localhost./", "http:127.0.0.1",
    "http:/127.0.0.1/", "http:///127.0.0.1/", "//127.0.0.1/", "http://127.0.0.1:80:80/",
    "http://93.184.216.34/redirect/301/http://169.254.169.254/",
    *[f"http://93.184.216.34/redirect/{code}/http://10.0.0.5/" for code in (302, 303, 307, 308)],
    "http://93.184.216.34/redirect/302/http://127.0.0.1:{port}/metrics",
    "http://93.184.216.34/redirect/302/http://[::1]/",
    "http://93.184.216.34/redirect/302///169.254.169.254/",
    "http://93.184.216.34/redirect/302/file:///etc/passwd",
    "http://93.184.216.34/redirect/302/gopher://127.0.0.1/",
    "http://93.184.216.34/twice/http://169.254.169.254/",
    "http://93.184.216.34/refresh/http://169.254.169.254/",
    "http://rebound.example/", "http://inside.example/", "http://metadata.google.internal/",
    "file:///etc/passwd", "/etc/passwd", "file:///proc/self/environ", "../../x.png",
    "file://localhost/etc/passwd", "gopher://127.0.0.1:80/_x", "ftp://127.0.0.1/x.png",
    "dict://127.0.0.1:80/", "jar:http://127.0.0.1!/x", "netdoc:///etc/passwd",
)  # fmt: skip

PUBLIC_BUT_ODD = "http://93.184.216.34#@127.0.0.1/"
"""By RFC 3986 what follows # is no part of the host; some parsers think otherwise."""

HOSTS = f"""127.0.0.1 localhost
169.254.169.254 metadata.google.internal
10.0.0.5 inside.example
{PUBLIC} public.example
{PUBLIC} rebound.example
127.0.0.1 rebound.example
"""

NAMES = {
    "first.rebinding.example": [[PUBLIC], ["10.0.0.5"]],
    "second.rebinding.example": [[PUBLIC], ["127.0.0.1"]],
    "from.example": [[PUBLIC], ["10.0.0.5"]],
    "to.example": [[PUBLIC], ["10.0.0.5"]],
    "four.mixed.example": [[PUBLIC, "10.0.0.5"]],
    "six.mixed.example": [[PUBLIC, "fd00:ec2::254"]],
}
"""Those that /etc/hosts does not have: the addresses of each look-up."""
MIXED = {name for name in NAMES if "mixed" in name}

CHAT = "/v1/chat/completions"
SHOWN = JSON[CHAT, "messages.content.image_url.url"]
NUM_TIMED, TELLING_S = 15, 0.02

needs_inside = pytest.mark.skipif(INSIDE not in os.environ, reason="runs inside of the next test")


def _can_have_a_network() -> bool:
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "ip", "mount"))):
        return False
    tried = subprocess.run(
        ["unshare", "-n", "-m", "ip", "link", "set", "lo", "up"], capture_output=True
    )
    return tried.returncode == 0


@pytest.mark.skipif(INSIDE in os.environ, reason="this is inside")
def test_in_a_network_of_its_own(target_kind: str, tmp_path: Path) -> None:
    """Runs the tests below there."""
    if not _can_have_a_network():
        pytest.skip("needs root and Linux, for a network namespace")
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\n")
    setup = ["ip link set lo up", f"mount --bind {hosts} /etc/hosts"]
    setup += [f"mount --bind {resolver} /etc/resolv.conf"]
    setup += [f"ip addr add {address}/32 dev lo" for address in (PUBLIC, *PRIVATE)]
    setup += [f"ip -6 addr add {address}/128 dev lo nodad" for address in PRIVATE_V6]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-x"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-ec", "; ".join([*setup, 'exec "$@"']), "sh", *command,
         "--target", target_kind, __file__],
        cwd=ROOT, env=environ | {INSIDE: "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


class Canaries:
    """Listens on port 80 of every address; what is private only counts."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self.num_public = 0
        self._listeners = []
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, 80))
            listener.listen(64)
            self._listeners.append(listener)
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(5)
                with connection, suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        address = connection.getsockname()[0]
        if address != PUBLIC:
            self.hits.append(address)
            connection.sendall(_picture())
            return
        self.num_public += 1
        path = connection.recv(2**16).split(b" ")[1].decode()
        if path.startswith("/redirect/"):
            code, _, to = path.removeprefix("/redirect/").partition("/")
            connection.sendall(f"HTTP/1.1 {code} X\r\nlocation: {to}\r\n\r\n".encode())
        elif path.startswith("/twice/"):
            to = "/redirect/302/" + path.removeprefix("/twice/")
            connection.sendall(f"HTTP/1.1 302 X\r\nlocation: {to}\r\n\r\n".encode())
        elif path.startswith("/refresh/"):
            to = path.removeprefix("/refresh/").encode()
            connection.sendall(_picture(b"refresh: 0; url=" + to + b"\r\n", body=b"<html>"))
        else:
            connection.sendall(_picture())


def _picture(headers: bytes = b"", body: bytes = GOOD) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: %d\r\n" % len(body)
    return head + headers + b"\r\n" + body


@pytest.fixture(scope="module")
def canaries() -> Iterator[Canaries]:
    listening = Canaries()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    server = NameServer(NAMES)
    yield server
    server.close()


@pytest.fixture(scope="module")
def fetching(_make_target) -> Iterator[Target]:
    target = _make_target(media_urls="http", media_url_timeout_s=2.0)
    yield target
    target.stop()


def test_every_door_of_the_api_is_known() -> None:
    found = declared(described_api())
    assert found == {"json": set(JSON), "form": FORMS}


@needs_inside
@pytest.mark.parametrize("url", URLS, ids=lambda url: ascii(url)[1:60])
def test_no_address_reaches_what_is_private(fetching: Target, canaries: Canaries, url: str) -> None:
    url = url.replace("{port}", str(fetching.port))
    messages = set()
    with fetching.client() as client:
        for door, reply in knock(client, url):
            assert reply.status_code == 400, (door, reply.text)
            messages.add(reply.json()["error"]["message"])
    assert not canaries.hits
    assert not [each for each in messages if "169.254" in each or "127.0.0" in each]


@needs_inside
def test_what_looks_like_two_hosts_is_the_checked_one(fetching: Target, canaries: Canaries) -> None:
    with fetching.client() as client:
        before = canaries.num_public
        for door, reply in knock(client, PUBLIC_BUT_ODD):
            assert reply.status_code in (200, 400), (door, reply.text)
            assert canaries.num_public == before + (reply.status_code == 200), door
            before = canaries.num_public
    assert not canaries.hits


@needs_inside
def test_refusals_do_not_tell_open_ports_from_closed(fetching: Target, canaries: Canaries) -> None:
    """The same words, as soon, whether somebody listens, nobody does, or nothing is there."""
    urls = ("http://10.0.0.5/", "http://10.0.0.5:8080/", "http://10.9.9.9/")
    texts, took_s = set(), {url: [] for url in urls}
    with fetching.client() as client:
        for url in urls * NUM_TIMED:
            started_s = time.monotonic()
            reply = client.post(CHAT, json=SHOWN(url))
            took_s[url].append(time.monotonic() - started_s)
            texts.add(reply.text)
    assert len(texts) == 1
    medians_s = [median(each) for each in took_s.values()]
    assert max(medians_s) - min(medians_s) < TELLING_S
    assert not canaries.hits


@needs_inside
@pytest.mark.parametrize("prefix", ["", "file://", "../.."])
def test_nothing_tells_whether_a_file_exists(
    fetching: Target, canaries: Canaries, prefix: str
) -> None:
    with fetching.client() as client:
        there = dict(knock(client, f"{prefix}/etc/passwd"))
        missing = dict(knock(client, f"{prefix}/etc/nobody"))
    for door, reply in there.items():
        assert reply.status_code == 400, door
        assert reply.text == missing[door].text, door
    assert not canaries.hits


@needs_inside
def test_a_name_is_looked_up_once_and_that_address_dialled(
    fetching: Target, canaries: Canaries, names: NameServer
) -> None:
    """Whoever looks up again gets a private address, as by rebinding."""
    before = canaries.num_public
    with fetching.client() as client:
        for path in (
            "first.rebinding.example/cat.png",
            "second.rebinding.example/cat.png",
            "from.example/redirect/302/http://to.example/cat.png",
        ):
            reply = client.post(CHAT, json=SHOWN(f"http://{path}"))
            assert reply.status_code == 200, reply.text
    assert canaries.num_public == before + 4
    assert not canaries.hits
    assert set(names.asked.values()) == {1}, names.asked
    assert {name for name, _ in names.asked} == names.answers.keys() - MIXED


@needs_inside
@pytest.mark.parametrize("name", sorted(MIXED))
def test_one_private_address_among_several_is_too_many(
    fetching: Target, canaries: Canaries, names: NameServer, name: str
) -> None:
    with fetching.client() as client:
        reply = client.post(CHAT, json=SHOWN(f"http://{name}/cat.png"))
    assert reply.status_code == 400
    assert names.asked[name, A] <= 1
    assert not canaries.hits


@needs_inside
def test_what_is_public_is_fetched(fetching: Target, canaries: Canaries) -> None:
    """So that the canaries are known to be alive, and the refusals to mean something."""
    before = canaries.num_public
    with fetching.client() as client:
        for url in (
            f"http://{PUBLIC}/cat.png",
            "http://public.example/cat.png",
            f"http://{PUBLIC}/redirect/302/http://public.example/cat.png",
        ):
            reply = client.post(CHAT, json=SHOWN(url))
            assert reply.status_code == 200, reply.text
    assert canaries.num_public >= before + 4
    with socket.create_connection(("10.0.0.5", 80), 5) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert canaries.hits == ["10.0.0.5"]
    canaries.hits.clear()
    fetching.check_p0()
