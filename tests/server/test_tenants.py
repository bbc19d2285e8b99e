"""Clients with different keys share the weights and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from server.live_drawings import LiveDrawing
from tests.serving import ServerInThread, wait_until

ANN = {"authorization": "Bearer sk-of-ann"}
ANN_TOO = {"authorization": "Bearer sk-of-ann-too"}
BOB = {"authorization": "Bearer sk-of-bob"}
QUESTION = "Which of the many shapes in this picture is the one that the others avoid?"


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    keys = "ann:sk-of-ann,ann:sk-of-ann-too,bob:sk-of-bob"
    with ServerInThread(model=str(tiny_checkpoint), api_keys=keys) as running:
        yield running


def ask(server: ServerInThread, image_url: str, headers: dict[str, str]) -> tuple[str, int, int]:
    """The answer, and how often it met something in the prefix and the vision cache."""
    wait_until(server.is_idle)
    before = server.context.dispatcher.service.stats()
    image = {"type": "image_url", "image_url": {"url": image_url}}
    content = [image, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    reply = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
    assert reply.status_code == 200
    wait_until(server.is_idle)
    after = server.context.dispatcher.service.stats()
    cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == after.prefix_hits - before.prefix_hits
    return (
        reply.json()["choices"][0]["message"]["content"],
        cached,
        after.vision_hits - before.vision_hits,
    )


def test_what_one_asked_is_in_no_cache_of_another(server: ServerInThread, image_url: str) -> None:
    answer, *hits = ask(server, image_url, ANN)
    assert hits == [0, 0]
    again, prefix, _ = ask(server, image_url, ANN)
    assert again == answer
    assert prefix > 0, "without hits among one's own the test says nothing"
    _, *hits = ask(server, image_url, BOB)
    assert hits == [0, 0]
    _, prefix, _ = ask(server, image_url, ANN_TOO)
    assert prefix > 0, "two keys of one name are one client"


def test_encoded_images_are_not_shared_either(server: ServerInThread, image_url: str) -> None:
    engine, service = server.context.pipeline.engine, server.context.dispatcher.service
    service.call(engine.reset_caches).result()
    hits = []
    for headers in (ANN, ANN, BOB, ANN):
        # Where the prefix is known, nobody looks for the image.
        service.call(engine._pool.forget_cached).result()
        hits.append(ask(server, image_url, headers)[2])
    assert hits == [0, 1, 0, 1]


def test_drawings_of_others_are_neither_seen_nor_ended(server: ServerInThread) -> None:
    context = server.context

    class Handle:
        interrupted = False

        def interrupt(self) -> None:
            self.interrupted = True

        def remaining_s(self) -> float:
            return 1.0

    drawing = LiveDrawing(Handle(), 1, 16, task_id="of-ann", tenant="ann")
    with context.drawings.listed(drawing):
        for headers, seen in ((ANN, "of-ann"), (BOB, None)):
            reply = httpx2.get(f"{server.url}/sdapi/v1/progress", headers=headers)
            assert reply.json()["current_task"] == seen
            httpx2.post(f"{server.url}/sdapi/v1/interrupt", headers=BOB)
            httpx2.post(f"{server.url}/sdapi/v1/skip", headers=BOB)
            assert not drawing.handle.interrupted
        httpx2.post(f"{server.url}/sdapi/v1/interrupt", headers=ANN_TOO)
        assert drawing.handle.interrupted
