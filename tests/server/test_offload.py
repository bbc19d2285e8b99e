"""What would block the event loop runs in threads of its own, and not too much of it waits."""

import asyncio
import threading

import httpx2
import pytest

from janus_core.errors import QueueFullError
from server.offload import Offload
from server.pictures import PictureFormat
from tests.serving import ServerInThread


def test_images_and_prompts_never_touch_the_event_loop(
    server: ServerInThread,
    client: httpx2.Client,
    image_url: str,
    monkeypatch: pytest.MonkeyPatch,
):
    threads = {}

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: object, **kwargs: object) -> object:
            threads[name] = threading.current_thread().name
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    pipeline = type(server.context.pipeline)
    for name in ("prepare_image", "text_requests", "image_requests"):
        watch(pipeline, name)
    watch(PictureFormat, "encode")
    parts = [{"type": "image_url", "image_url": {"url": image_url}}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
    assert threads.keys() == {"prepare_image", "text_requests", "image_requests", "encode"}
    assert all(name.startswith("offload") for name in threads.values())


async def test_no_more_jobs_wait_than_may():
    offload = Offload(num_threads=1, max_pending=2)
    gate = threading.Event()
    first, second = (asyncio.ensure_future(offload.run(gate.wait)) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await offload.run(gate.wait)
    gate.set()
    assert await first
    assert await second
    assert await offload.run(lambda: 5) == 5
    offload.close()


async def test_the_error_of_a_job_reaches_who_waits_for_it():
    offload = Offload(num_threads=1, max_pending=1)
    with pytest.raises(ZeroDivisionError):
        await offload.run(lambda: 1 / 0)
    assert await offload.run(lambda: 5) == 5
    offload.close()
