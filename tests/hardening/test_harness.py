"""The harness itself: a good server holds P0, and whatever breaks it is seen."""

import httpx2
import pytest

from tests.hardening.target import LEAK, RSS_BOUND_OF_ALL_BYTES, Target


def test_a_server_left_alone_holds_p0(target: Target) -> None:
    assert target.answer() == target.answer()
    assert target.picture() == target.picture()
    target.check_p0()


@pytest.mark.parametrize(
    "text",
    [
        "<_io.BytesIO object at 0x7a9512ab40>",
        'File "/home/user/app.py", line 3',
        "/usr/lib/python3.11/site-packages/PIL/Image.py",
        "Traceback (most recent call last):",
    ],
)
def test_what_a_leak_looks_like(text: str) -> None:
    assert LEAK.search(text)


def test_a_leak_in_a_body_breaks_p0(target: Target) -> None:
    target._scan("application/json", b'{"error": "<object at 0x7a9512ab40>"}')
    with pytest.raises(AssertionError, match="0x7a9512ab40"):
        target.check_p0()
    target.check_p0()  # reported once


def test_bodies_are_scanned_streamed_and_whole(target: Target) -> None:
    seen = []
    target_scan, target._scan = target._scan, lambda kind, body: seen.append((kind, body))
    try:
        with target.client() as client:
            whole = client.get("/version").content
            with client.stream("GET", "/metrics") as response:
                next(response.iter_raw())
    finally:
        target._scan = target_scan
    (kind, body), (_, started) = seen
    assert (kind, body) == ("application/json", whole)
    assert started


def test_running_work_breaks_p0(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "patience_s", 0.2)
    monkeypatch.setattr(target, "_busy", lambda: {"num_requests_running": 1.0})
    with pytest.raises(AssertionError, match="still holds"):
        target.check_p0()


def test_another_answer_breaks_p0(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_golden_answer", "something else")
    with pytest.raises(AssertionError, match="another answer"):
        target.check_p0()


@pytest.mark.parametrize(("base", "found"), [("_base_rss", "has grown"), ("_start_rss", "in all")])
def test_growth_breaks_p0(
    target: Target, monkeypatch: pytest.MonkeyPatch, base: str, found: str
) -> None:
    monkeypatch.setattr(target, base, -RSS_BOUND_OF_ALL_BYTES)
    with pytest.raises(AssertionError, match=found):
        target.check_p0()


def test_an_end_breaks_p0(start_target) -> None:
    victim: Target = start_target(p0=False)
    victim.stop()
    with pytest.raises(AssertionError, match="has ended"):
        victim.check_p0()
    old = victim.pid
    victim.restart()
    assert victim.pid != old
    victim.check_p0()


def test_settings_reach_the_server(start_target, target_kind: str) -> None:
    if target_kind == "naive":
        pytest.skip("it has no settings")
    limited: Target = start_target(max_body_bytes=20_000)
    with limited.client() as client:
        reply = client.post("/v1/chat/completions", json={"x": "x" * 20_000})
    assert reply.status_code == 413
    limited.signal()
    assert limited.wait() == 0
    with pytest.raises(httpx2.ConnectError):
        limited.answer()
