"""What the labels of metrics can be, what has a series from the start, and what counts as what."""

import io
import threading
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from server.metric_table import COUNTERS, PREFIX, TASKS
from tests.server.test_health import samples
from tests.server.test_metrics import value
from tests.serving import ServerInThread, wait_until

DRAW = "/v1/images/generations"


def test_every_value_of_a_label_has_a_series_from_the_start(tiny_checkpoint: Path):
    """What is not there before its first event is invisible to `rate`."""
    server = ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny")
    with server, server.client() as client:
        found = samples(client)
    for name, spec in COUNTERS.items():
        for number in spec.values:
            series = [key for key in found if key[0] == f"{PREFIX}{name}_total"]
            labels = [dict(key[1:]) for key in series]
            having = [each for each in labels if each[spec.labels[-1]] == number]
            assert len(having) == (len(TASKS) if "task" in spec.labels else 1), (name, number)
            assert all(found[key] == 0 for key in series)


def test_a_caption_is_a_task_of_its_own(client: httpx2.Client):
    before = value(client, "generation_tokens_total", task="caption")
    answers = value(client, "generation_tokens_total", task="chat")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    reply = client.post("/v1/caption", files={"image": ("a.png", picture.getvalue(), "image/png")})
    num_tokens = reply.json()["usage"]["completion_tokens"]
    assert value(client, "generation_tokens_total", task="caption") == before + num_tokens
    assert value(client, "generation_tokens_total", task="chat") == answers


def test_a_failure_is_counted_by_its_code(
    server: ServerInThread, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
):
    labels = {"task": "image", "reason": "deadline_exceeded"}
    before = value(client, "request_failure_total", **labels)
    late = value(client, "images_total", finish_reason="deadline")
    release = threading.Event()
    held = server.context.dispatcher.service.call(lambda: release.wait(30))
    wait_until(held.running)
    headers = {"x-request-timeout-s": "0.2"}
    assert client.post(DRAW, json={"prompt": "a circle"}, headers=headers).status_code == 503
    release.set()
    wait_until(server.is_idle)
    assert value(client, "request_failure_total", **labels) == before + 1
    assert value(client, "images_total", finish_reason="deadline") == late + 1

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    # Where the engine's own token fails as well, the request is not to blame.
    labels["reason"] = "server_is_overloaded"
    before = value(client, "request_failure_total", **labels)
    failed = value(client, "images_total", finish_reason="error")
    monkeypatch.setattr(server.context.pipeline.engine._runner, "run", fail)
    reply = client.post(DRAW, json={"prompt": "a circle"})
    assert reply.json()["error"]["code"] == labels["reason"]
    assert value(client, "request_failure_total", **labels) == before + 1
    assert value(client, "images_total", finish_reason="error") == failed + 1
