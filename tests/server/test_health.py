"""What machines ask: models, health, version, metrics, request ids, the log."""

import logging

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.logs import JsonFormatter, TextFormatter
from server.metrics import COUNTERS, ENGINE_COUNTERS, ENGINE_GAUGES, HISTOGRAMS, INFOS, PREFIX
from tests.serving import ServerInThread, wait_until

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "ignore_eos": True}


def samples(client: httpx2.Client) -> dict[tuple, float]:
    """Every sample of /metrics by its name and labels."""
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_models_are_listed_and_found(client: httpx2.Client):
    listed = client.get("/v1/models").json()
    (card,) = listed["data"]
    assert listed["object"] == "list"
    assert {"id": "tiny", "object": "model", "max_model_len": 1024}.items() <= card.items()
    assert client.get("/v1/models/tiny").json() == card
    assert card["picture"] == {"size": "16x16", "num_codes": 16, "codes_per_row": 4}
    assert card["defaults"]["text"] == {"temperature": 0, "top_p": 1}
    assert card["defaults"]["picture"] == {"guidance_scale": 5, "temperature": 1, "top_p": 1}
    assert client.get("/v1/models/a/b").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/health", "/ping", "/livez", "/readyz"])
def test_a_healthy_server_says_so(client: httpx2.Client, path: str):
    reply = client.get(path)
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


def test_the_limits_of_a_model_are_those_that_are_enforced(client: httpx2.Client):
    limits = client.get("/v1/models/tiny").json()["limits"]
    assert (limits["max_pictures"], limits["max_choices"]) == (4, 4), "of this server's settings"
    body = {"prompt": "a red circle", "stream": True}
    for name, limit in (
        ("n", limits["max_pictures"]),
        ("partial_images", limits["max_partial_images"]),
    ):
        refused = client.post("/v1/images/generations", json=body | {name: limit + 1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
        assert client.post("/v1/images/generations", json=body | {name: limit}).status_code == 200


def test_the_load_is_what_runs_now(server: ServerInThread, client: httpx2.Client):
    wait_until(server.is_idle)
    idle = client.get("/load").json()
    assert (idle["status"], idle["server_load"]) == ("ok", 0)
    body = {"messages": BODY["messages"], "ignore_eos": True, "n": 3, "stream": True}
    with client.stream("POST", CHAT, json=body):
        wait_until(lambda: httpx2.get(f"{server.url}/load").json()["num_requests_running"] == 3)
        load = httpx2.get(f"{server.url}/load").json()
        assert load["server_load"] == load["num_requests_running"] + load["num_requests_waiting"]
        assert load["image_eta_s"] is None or load["image_eta_s"] > 0
    wait_until(server.is_idle)


def test_version_names_what_runs(client: httpx2.Client):
    version = client.get("/version").json()
    assert version.keys() == {
        "version",
        "model",
        "device",
        "dtype",
        "number_formats",
        "attention_backend",
        "threads",
    }
    assert (version["model"], version["device"], version["dtype"]) == ("tiny", "cpu", "float32")
    assert version["threads"] == "1"


def test_metrics_count_what_was_done(client: httpx2.Client):
    before = samples(client)
    reply = client.post(CHAT, json=BODY).json()
    client.post("/v1/images/generations", json={"prompt": "a red circle", "n": 2})
    client.post(CHAT, json=BODY | {"n": 0})
    after = samples(client)

    def grown(name: str, **labels: str) -> float:
        key = (PREFIX + name, *sorted({"model_name": "tiny", **labels}.items()))
        return after[key] - before.get(key, 0)

    chat, image = {"task": "chat"}, {"task": "image"}
    assert grown("request_success_total", finished_reason="length", **chat) == 1
    assert grown("request_success_total", finished_reason="stop", **image) == 2
    assert grown("prompt_tokens_total", **chat) == reply["usage"]["prompt_tokens"]
    assert grown("generation_tokens_total", **chat) == 4
    assert grown("generation_tokens_total", **image) == 32
    assert grown("images_generated_total") == 2
    assert grown("image_generation_seconds_count") == 2
    assert grown("time_to_first_token_seconds_count", **chat) == 1
    assert grown("inter_token_latency_seconds_count", **chat) == 3
    assert grown("e2e_request_latency_seconds_count", **image) == 2
    assert grown("request_params_n_sum", **image) == 2
    assert grown("requests_rejected_total", reason="invalid_value") == 1
    assert grown("decode_rows_sum", branch="cond") == grown("decode_rows_sum", branch="uncond") > 0
    assert grown("decode_rows_count", branch="text") == grown("step_seconds_count")
    assert 0 < grown("image_step_seconds_count") < grown("step_seconds_count")
    assert grown("images_total", finish_reason="stop") == 2
    assert after[(f"{PREFIX}cfg_rows_running", ("model_name", "tiny"))] == 0
    assert after[(f"{PREFIX}num_requests_running", ("model_name", "tiny"))] == 0


def test_every_metric_of_the_tables_is_exported(client: httpx2.Client):
    families = {
        family.name for family in text_string_to_metric_families(client.get("/metrics").text)
    }
    # A labelled metric has no samples, and no family here, before its first use.
    text = client.get("/metrics").text
    for name in (*COUNTERS, *HISTOGRAMS, *ENGINE_GAUGES, *ENGINE_COUNTERS, *INFOS):
        assert PREFIX + name in text
    assert {"http_requests", "http_request_duration_seconds"} <= families


def test_clients_cannot_grow_the_number_of_series(client: httpx2.Client):
    client.request("BREW", "/v1/nothing")
    client.post(CHAT, json=BODY | {"model": "x"})
    before = samples(client).keys()
    for index in range(20):
        client.request(f"BREW{index}", f"/v1/nothing/{index}")
        client.post(CHAT, json=BODY | {"model": f"x{index}"}, headers={"user-agent": str(index)})
    assert samples(client).keys() == before


def test_a_request_id_is_kept_if_it_is_plain(client: httpx2.Client):
    kept = client.get("/livez", headers={"x-request-id": "abc-1.2:3"})
    assert kept.headers["x-request-id"] == "abc-1.2:3"
    for bad in ("a b", "x" * 129, "a\tb", ""):
        replaced = client.get("/livez", headers={"x-request-id": bad})
        assert replaced.headers["x-request-id"].startswith("req_")
    assert client.get("/nothing").headers["x-request-id"].startswith("req_")


def test_one_access_line_per_request_without_its_words(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, logger="server.access"):
        body = BODY | {"messages": [{"role": "user", "content": "canary"}]}
        client.post(CHAT, json=body, headers={"x-request-id": "logged"})
        client.get("/v1/%0D%0Ainjected")
    lines = [r.getMessage() for r in caplog.records if r.name == "server.access"]
    (line,) = [line for line in lines if "request_id=logged" in line]
    assert "model=tiny task=chat n=1" in line
    assert "output_tokens=4 input_images=0 images=0 queue_s=" in line
    assert "ttft_s=" in line
    assert "reason=length" in line
    assert not any("canary" in record.getMessage() for record in caplog.records)
    assert not any("\n" in line or "\r" in line for line in lines)


def test_no_message_starts_a_second_line():
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\r\nb\x1b[2J\u2028%s", ("\n",), None)
    for formatter in (TextFormatter(), JsonFormatter()):
        assert len(formatter.format(record).splitlines()) == 1


def test_wrong_methods_and_paths_have_the_envelope(client: httpx2.Client):
    for method, path, status in (
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/x", 404),
    ):
        reply = client.request(method, path)
        assert reply.status_code == status
        assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
    assert client.get(CHAT).headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["BREW", "it's`|~", "M" * 5000, "CONNECT", "%0D%0A"])
def test_a_wrong_method_is_not_quoted(client: httpx2.Client, method: str):
    """It is the client's text, of any length."""
    reply = client.request(method, CHAT)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    error = reply.json()["error"]
    assert error["code"] == "method_not_allowed"
    assert error["message"] == "This URL does not answer this method."


def test_an_unexpected_failure_is_500_without_its_text(
    server: ServerInThread, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(type(server.context.pipeline), "text_requests", fail)
    reply = client.post(CHAT, json=BODY)
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal_error"
    assert reply.headers["x-request-id"]
    assert "secret" not in reply.text


def test_the_schema_of_the_api_can_be_built(client: httpx2.Client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {CHAT, "/v1/images/generations", "/v1/models", "/metrics"} <= paths.keys()
