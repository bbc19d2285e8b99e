"""What /metrics counts beside answers, under whose names, and whether Prometheus likes it."""

import os
import shutil
import signal
import subprocess

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from janus_core.decode_pool import REASONS
from server.metrics import HISTOGRAMS, PREFIX
from server.vllm_metrics import NAMES, VLLM_PREFIX
from tests.server.test_health import BODY, CHAT, samples
from tests.serving import ServerInThread, wait_until

LABELS = (("engine", "0"), ("model_name", "tiny"))
DRAW = "/v1/images/generations"

# promtool's rules that the names of the field break: a prefix parted by a colon, everywhere, and
# one histogram of vLLM's that ends like a counter.
ALLOWED = ("metric names should not contain ':'",)
ALLOWED_VLLM = (
    *ALLOWED,
    'vllm:iteration_tokens_total non-counter metrics should not have "_total"',
)


@pytest.fixture(scope="module")
def compatible(tiny_checkpoint):
    with ServerInThread(
        model=str(tiny_checkpoint), served_model_name="tiny", metrics_compat="vllm"
    ) as server:
        yield server


def value(client: httpx2.Client, name: str, **labels: str) -> float:
    key = (PREFIX + name, *sorted({"model_name": "tiny", **labels}.items()))
    return samples(client)[key]


def problems(text: str, *, allowed: tuple[str, ...]) -> list[str]:
    """What `promtool check metrics` says of an exposition, but what is allowed."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not any(each in line for each in allowed)]


def test_promtool_finds_nothing(client: httpx2.Client):
    client.post(CHAT, json=BODY)
    client.post(DRAW, json={"prompt": "a circle"})
    client.get("/nothing")
    assert problems(client.get("/metrics").text, allowed=ALLOWED) == []


def test_promtool_finds_nothing_in_vllms_names(compatible: ServerInThread):
    with compatible.client() as client:
        client.post(CHAT, json=BODY)
        text = client.get("/metrics").text
    assert problems(text, allowed=ALLOWED_VLLM) == []
    assert problems(text.replace("# HELP", "# HALP"), allowed=ALLOWED_VLLM), "it looks at nothing"


def test_what_every_server_counts_begins_at_zero(tiny_checkpoint):
    server = ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny")
    with server, server.client() as client:
        assert value(client, "client_disconnects_total") == 0
        assert value(client, "request_failure_total", task="image", reason="step_failed") == 0
        assert value(client, "time_to_first_token_seconds_count", task="chat") == 0


def test_a_refused_image_is_counted_by_its_reason(client: httpx2.Client):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = BODY | {"messages": [{"role": "user", "content": [part]}]}
    code = client.post(CHAT, json=body).json()["error"]["code"]
    before = value(client, "media_rejections_total", reason=code)
    everything = value(client, "requests_rejected_total", reason=code)
    client.post(CHAT, json=body)
    assert value(client, "media_rejections_total", reason=code) == before + 1
    assert value(client, "requests_rejected_total", reason=code) == everything + 1


def test_a_decoder_that_is_lost_is_counted_by_its_reason(tiny_checkpoint, image_url: str):
    part = {"type": "image_url", "image_url": {"url": image_url}}
    body = BODY | {"messages": [{"role": "user", "content": [part]}]}

    def numbers() -> list[float]:
        return [value(client, "decode_workers_lost_total", reason=each) for each in REASONS]

    server = ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny", decode_workers=1)
    with server, server.client() as client:
        assert client.post(CHAT, json=body).status_code == 200
        assert numbers() == [0] * len(REASONS), "they begin at zero"
        (pid,) = server.context.pipeline.images.pids
        os.kill(pid, signal.SIGSEGV)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert client.post(CHAT, json=body).status_code == 200
        assert dict(zip(REASONS, numbers(), strict=True))["crash"] == sum(numbers()) == 1


def test_a_client_that_leaves_is_counted_and_so_is_what_it_saved(
    server: ServerInThread, client: httpx2.Client
):
    left = value(client, "client_disconnects_total")
    saved = value(client, "cancelled_steps_saved_total", task="chat")
    spent = value(client, "cancelled_tokens_total", task="chat")
    before = samples(client)
    body = BODY | {"max_tokens": 900, "stream": True}
    with client.stream("POST", CHAT, json=body) as reply:
        next(reply.iter_bytes())
    wait_until(lambda: value(client, "requests_cancelled_total", task="chat") > 0)
    wait_until(server.is_idle)
    assert value(client, "client_disconnects_total") == left + 1
    num_spent = value(client, "cancelled_tokens_total", task="chat") - spent
    assert value(client, "cancelled_steps_saved_total", task="chat") - saved == 900 - num_spent
    assert num_spent > 0
    key = (f"{PREFIX}generation_tokens_total", ("model_name", "tiny"), ("task", "chat"))
    assert samples(client)[key] - before[key] == num_spent


def test_a_picture_made_a_file_is_timed(client: httpx2.Client):
    before = value(client, "image_encode_seconds_count")
    client.post(DRAW, json={"prompt": "a circle", "n": 2})
    assert value(client, "image_encode_seconds_count") == before + 2


def test_a_second_drawing_finds_the_unconditional_prompt(client: httpx2.Client):
    client.post(DRAW, json={"prompt": "a circle"})
    hits = value(client, "uncond_prefix_hits_total")
    client.post(DRAW, json={"prompt": "a square"})
    assert value(client, "uncond_prefix_hits_total") > hits


def test_an_image_seen_before_is_a_hit(client: httpx2.Client, image_url: str):
    part = {"type": "image_url", "image_url": {"url": image_url}}
    for question in ("what", "who"):
        hits = value(client, "mm_cache_hits_total")
        # Behind the same words it would be part of a cached prefix, and not looked up.
        content = [{"type": "text", "text": question}, part]
        client.post(CHAT, json=BODY | {"messages": [{"role": "user", "content": content}]})
    assert value(client, "mm_cache_hits_total") == hits + 1


def test_the_process_is_measured(client: httpx2.Client):
    numbers = {name: number for (name, *_), number in samples(client).items()}
    assert numbers["process_resident_memory_bytes"] > 2**20
    assert numbers["process_open_fds"] > 3
    assert numbers[f"{PREFIX}event_loop_tasks"] >= 1


def test_sleep_has_a_level(tiny_checkpoint):
    server = ServerInThread(model=str(tiny_checkpoint), served_model_name="tiny", admin_key="sk-a")
    with server, server.client() as client:
        client.headers["authorization"] = "Bearer sk-a"
        assert value(client, "engine_sleep_state") == 0
        for level in ("1", "2"):
            assert client.post("/admin/sleep", params={"level": level}).status_code == 200
            assert value(client, "engine_sleep_state") == int(level)
        assert client.post("/admin/wake").status_code == 200
        assert value(client, "engine_sleep_state") == 0


def test_vllms_names_are_there_only_where_wanted(client: httpx2.Client, compatible: ServerInThread):
    assert VLLM_PREFIX not in client.get("/metrics").text
    with compatible.client() as other:
        text = other.get("/metrics").text
    families = {family.name for family in text_string_to_metric_families(text)}
    for name in (name for names in NAMES.values() for name in names):
        # The parser takes the ending of a counter away, and no other.
        assert VLLM_PREFIX + name in families, name


def test_vllms_numbers_are_ours_with_its_labels_and_its_ends(compatible: ServerInThread):
    def vllm(name: str, **labels: str) -> float:
        return now[(VLLM_PREFIX + name, *sorted((*LABELS, *labels.items())))]

    with compatible.client() as client:
        client.post(CHAT, json=BODY)
        client.post(DRAW, json={"prompt": "a circle"})
        with client.stream("POST", CHAT, json=BODY | {"max_tokens": 900, "stream": True}) as reply:
            next(reply.iter_bytes())
        wait_until(lambda: value(client, "requests_cancelled_total", task="chat") > 0)
        wait_until(compatible.is_idle)
        now = samples(client)

        def ours(name: str, *tasks: str) -> float:
            return sum(value(client, name, task=task) for task in tasks)

        both = ("chat", "image")
        assert vllm("num_requests_running") == 0
        assert vllm("gpu_cache_usage_perc") == value(client, "kv_cache_usage_perc")
        assert vllm("prompt_tokens_total") == ours("prompt_tokens_total", *both) > 0
        name = "e2e_request_latency_seconds_count"
        assert vllm(name) == ours(name, *both) >= 2
        assert vllm("request_success_total", finished_reason="abort") == 1
        assert vllm("request_success_total", finished_reason="error") == 0
        assert vllm("request_success_total", finished_reason="stop") >= 1
        count = value(client, "iteration_tokens_count")
        assert vllm("iteration_tokens_total_count") == count > 0


def test_only_known_histograms_are_renamed():
    """A new name in the table must be one of ours; the others are the engine's."""
    assert {"e2e_request_latency_seconds", "iteration_tokens"} <= NAMES.keys() & HISTOGRAMS.keys()
