"""What would block the event loop runs in threads of its own, and not too much of it waits."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator

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
    first, second = (asyncio.ensure_future(offload.admit("", gate.wait)) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await offload.admit("", gate.wait)
    # A picture that is drawn already is not lost because others queue for theirs.
    encoding = asyncio.ensure_future(offload.run("", gate.wait))
    await asyncio.sleep(0)
    assert not encoding.done()
    gate.set()
    assert await first
    assert await second
    assert await encoding
    assert await offload.run("", lambda: 5) == 5
    offload.close()


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads is Linux's")
async def test_jobs_stand_behind_what_computes():
    """And the event loop does not."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    offload = Offload(num_threads=2, max_pending=2)
    before = niceness()
    assert await asyncio.gather(*[offload.run("", niceness) for _ in range(2)]) == [NICENESS] * 2
    assert niceness() == before
    offload.close()


async def test_the_error_of_a_job_reaches_who_waits_for_it():
    offload = Offload(num_threads=1, max_pending=1)
    with pytest.raises(ZeroDivisionError):
        await offload.run("", lambda: 1 / 0)
    assert await offload.run("", lambda: 5) == 5
    offload.close()


async def test_a_job_nobody_waits_for_does_not_begin():
    offload = Offload(num_threads=1, max_pending=2)
    gate, begun = threading.Event(), []
    first = asyncio.ensure_future(offload.admit("", gate.wait))
    second = asyncio.ensure_future(offload.admit("", begun.append, 2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    assert await first
    await offload.admit("", begun.append, 3)
    assert begun == [3]
    offload.close()


async def test_a_panic_is_an_exception_like_any_other():
    class Panic(BaseException):
        """As extensions in Rust raise."""

    def panic() -> None:
        raise Panic("index out of range")

    offload = Offload(num_threads=1, max_pending=1)
    with pytest.raises(RuntimeError) as caught:
        await offload.run("", panic)
    assert isinstance(caught.value.__cause__, Panic)
    offload.close()


async def settled() -> None:
    """Let the event loop do what is to be done."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Jobs that wait for it end with the test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_tenants_take_turns_and_keep_their_order(gate: threading.Event):
    offload, begun = Offload(num_threads=1, max_pending=20), []
    jobs = [asyncio.ensure_future(offload.run("a", gate.wait))]
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        await settled()
        jobs.append(asyncio.ensure_future(offload.run(name[0], begun.append, name)))
    await settled()
    gate.set()
    await jobs[4]
    # Whoever had a turn is behind those who wait for theirs.
    jobs.append(asyncio.ensure_future(offload.run("b", begun.append, "b2")))
    await asyncio.gather(*jobs)
    assert begun[:4] == ["a1", "b1", "c1", "a2"]
    assert sorted(begun[4:]) == ["a3", "b2", "c2"]
    assert begun.index("c2") < begun.index("a3")
    offload.close()


async def fill(offload: Offload, tenant: str, gate: threading.Event) -> list[asyncio.Task]:
    """All the requests of a tenant that find a place."""
    taken = []
    while True:
        task = asyncio.ensure_future(offload.admit(tenant, gate.wait))
        await settled()
        if task.done():
            assert isinstance(task.exception(), QueueFullError)
            return taken
        taken.append(task)


async def test_one_tenant_leaves_places_to_others_and_they_to_yet_others(gate: threading.Event):
    offload = Offload(num_threads=1, max_pending=64)
    taken = [await fill(offload, tenant, gate) for tenant in "abcd"]
    assert [len(tasks) for tasks in taken] == [48, 12, 3, 1]
    for task in taken[0][1:]:
        task.cancel()
    await settled()
    assert offload._num_pending == 17
    assert len(await fill(offload, "d", gate)) > 10
    offload.close()


async def test_without_names_all_places_are_everybodys(gate: threading.Event):
    offload = Offload(num_threads=1, max_pending=8)
    assert len(await fill(offload, "", gate)) == 8
    offload.close()


async def test_a_request_of_many_parts_takes_as_many_places():
    offload = Offload(num_threads=1, max_pending=8)
    with offload.places("a", 20):  # larger than all, but alone
        for tenant in "ab":
            with pytest.raises(QueueFullError), offload.places(tenant):
                pass
    with offload.places("a", 4), offload.places("b", 2):
        with pytest.raises(QueueFullError), offload.places("a", 2):
            pass
        with offload.places("c", 2):
            assert offload._num_pending == 8
    assert offload._num_pending == 0
    offload.close()


async def test_whoever_leaves_frees_its_place_and_not_the_thread_it_keeps_busy():
    offload, gates, begun = Offload(num_threads=1, max_pending=8), [threading.Event()], []
    gates.append(threading.Event())
    first = asyncio.ensure_future(offload.admit("a", gates[0].wait))
    await settled()
    second = asyncio.ensure_future(offload.admit("a", gates[1].wait))
    third = asyncio.ensure_future(offload.admit("b", begun.append, 3))
    await settled()
    first.cancel()
    second.cancel()
    await settled()
    assert offload._num_pending == 1
    assert not offload._lines.get("a")
    assert begun == []
    gates[0].set()
    await third
    assert begun == [3]
    assert await asyncio.wait_for(offload.run("a", lambda: 5), 10) == 5
    offload.close()


async def test_a_turn_is_handed_on_by_whoever_leaves_as_it_comes():
    offload = Offload(num_threads=1, max_pending=8)
    await offload._turn("a")
    job = asyncio.ensure_future(offload.run("a", lambda: 2))
    await settled()
    offload._end_turn()
    job.cancel()
    await settled()
    assert job.cancelled()
    assert await asyncio.wait_for(offload.run("b", lambda: 5), 10) == 5
    offload.close()


async def test_closing_drops_what_waits(gate: threading.Event):
    offload = Offload(num_threads=1, max_pending=8)
    jobs = [asyncio.ensure_future(offload.run("a", gate.wait)) for _ in range(3)]
    await settled()
    offload.close()
    for job in jobs[1:]:
        with pytest.raises(asyncio.CancelledError):
            await job
    gate.set()
    assert await jobs[0]
