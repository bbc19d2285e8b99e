"""A stream that was begun always says how it ended; what nobody foresaw is told to the log only."""

import json

import httpx2
import pytest

from server.chat_reply import ChatReply
from server.pictures import PictureFormat
from tests.serving import ServerInThread, wait_until

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
IMAGES = ("/v1/images/generations", {"prompt": "a red circle", "n": 2})


@pytest.fixture(params=["chat", "images"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict]:
    """An endpoint whose answers cannot be put into words."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret path")

    if request.param == "chat":
        monkeypatch.setattr(ChatReply, "_logprobs", fail)
        return CHAT
    monkeypatch.setattr(PictureFormat, "file", fail)
    return IMAGES


def test_an_unexpected_failure_ends_a_stream_with_an_error(
    server: ServerInThread, client: httpx2.Client, failing: tuple[str, dict]
):
    url, body = failing
    with client.stream("POST", url, json=body | {"stream": True}) as reply:
        assert reply.status_code == 200
        lines = [line for line in reply.read().decode().splitlines() if line]
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
    assert "data: [DONE]" not in lines
    assert (lines[-2] == "event: error") == (url == IMAGES[0])
    wait_until(server.is_idle)


def test_an_unexpected_failure_without_a_stream_is_500_and_not_worth_a_retry(
    server: ServerInThread, client: httpx2.Client, failing: tuple[str, dict]
):
    url, body = failing
    reply = client.post(url, json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert reply.headers["x-should-retry"] == "false"
    assert "secret" not in reply.text
    wait_until(server.is_idle)
