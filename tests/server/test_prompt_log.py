"""Prompts in the log: only where asked for, one line, short, never an image."""

import pytest

from tests.serving import ServerInThread, wait_until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def talkative(tiny_checkpoint):
    with ServerInThread(model=str(tiny_checkpoint), log_prompts=True) as server:
        yield server


def access_line(caplog: pytest.LogCaptureFixture) -> str:
    """The only one; it is written after the answer is out."""

    def found() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "server.access"]

    wait_until(found)
    (line,) = found()
    return line


def ask(server: ServerInThread, text: str, *parts: dict) -> None:
    content = [*parts, {"type": "text", "text": text}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    with server.client() as client:
        reply = client.post(CHAT, json=body, headers={"authorization": "Bearer sk-canary"})
        assert reply.status_code == 200, reply.text


def test_the_end_of_a_prompt_is_shown_where_asked_for(
    talkative: ServerInThread, image_url: str, caplog: pytest.LogCaptureFixture
):
    part = {"type": "image_url", "image_url": {"url": image_url}}
    caplog.set_level("INFO")
    ask(talkative, "begin " + 100 * "b c d " + "a\r\nGET /evil\x1b[2J end", part)
    line = access_line(caplog)
    assert "end" in line.rpartition("prompt=")[2]
    assert "begin" not in line
    assert len(line.rpartition("prompt=")[2]) <= 2000
    assert not {"\r", "\n", "\x1b"} & set(line)
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "placeholder" not in text
    assert "base64" not in text
    assert "sk-canary" not in text


def test_a_drawing_shows_its_prompt_too(
    talkative: ServerInThread, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    with talkative.client() as client:
        client.post("/v1/images/generations", json={"prompt": "a canary"})
    line = access_line(caplog)
    assert "canary" in line.rpartition("prompt=")[2]
    assert "images=1" in line


def test_nothing_is_shown_by_default(server: ServerInThread, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    ask(server, "a canary")
    line = access_line(caplog)
    assert "prompt=" not in line
    assert not any("canary" in record.getMessage() for record in caplog.records)
