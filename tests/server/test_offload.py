"""What would block the event loop runs in threads of its own, and not too much of it waits."""

import asyncio
import os
import sys
import threading

import httpx2
import pytest

from janus_core.errors import QueueFullError
from server.offload import NICENESS, Offload
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
    watch(PictureFormat, "file")
    parts = [{"type": "image_url", "image_url": {"url": image_url}}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
    assert threads.keys() == {"prepare_image", "text_requests", "image_requests", "file"}
    assert all(name.startswith("offload") for name in threads.values())


async def test_no_more_jobs_wait_than_may():
    offload = Offload(num_threads=1, max_pending=2)
    gate = threading.Event()
    first, second = (asyncio.ensure_future(offload.admit(gate.wait)) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await offload.admit(gate.wait)
    # A picture that is drawn already is not lost because others queue for theirs.
    encoding = asyncio.ensure_future(offload.run(gate.wait))
    await asyncio.sleep(0)
    assert not encoding.done()
    gate.set()
    assert await first
    assert await second
    assert await encoding
    assert await offload.run(lambda: 5) == 5
    offload.close()


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads is Linux's")
async def test_jobs_stand_behind_what_computes():
    """And the event loop does not."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    offload = Offload(num_threads=2, max_pending=2)
    before = niceness()
    assert await asyncio.gather(*[offload.run(niceness) for _ in range(2)]) == [NICENESS] * 2
    assert niceness() == before
    offload.close()


async def test_the_error_of_a_job_reaches_who_waits_for_it():
    offload = Offload(num_threads=1, max_pending=1)
    with pytest.raises(ZeroDivisionError):
        await offload.run(lambda: 1 / 0)
    assert await offload.run(lambda: 5) == 5
    offload.close()


async def test_a_job_nobody_waits_for_does_not_begin():
    offload = Offload(num_threads=1, max_pending=2)
    gate, begun = threading.Event(), []
    first = asyncio.ensure_future(offload.admit(gate.wait))
    second = asyncio.ensure_future(offload.admit(begun.append, 2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    assert await first
    await offload.admit(begun.append, 3)
    assert begun == [3]
    offload.close()


async def test_a_panic_is_an_exception_like_any_other():
    class Panic(BaseException):
        """As extensions in Rust raise."""

    def panic() -> None:
        raise Panic("index out of range")

    offload = Offload(num_threads=1, max_pending=1)
    with pytest.raises(RuntimeError) as caught:
        await offload.run(panic)
    assert isinstance(caught.value.__cause__, Panic)
    offload.close()
