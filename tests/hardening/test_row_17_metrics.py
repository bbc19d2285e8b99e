"""Row 17: clients cannot grow the number of series, nor read them where they are not for them.

PYSEC-2026-4325: the raw method of a request became a label, and every new one a series for ever.
"""

import random
import re
import string
import time
from collections.abc import Callable

import httpx2

from tests.hardening.target import Target

NUM_REQUESTS = 300
KEY = "sk-row-seventeen-of-the-list"
BEARER = {"authorization": f"Bearer {KEY}"}


def word(rng: random.Random, length: int = 12) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=length))


def flood(target: Target, rng: random.Random, num_requests: int) -> None:
    """Unknown methods, paths, models, keys, agents and fields, each of them new."""
    with target.client() as client:
        for number in range(num_requests):
            new = word(rng)
            headers = {
                "user-agent": new,
                "x-request-id": new,
                "authorization": f"Bearer {new}",
                "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01",
            }
            match number % 5:
                case 0:
                    client.request(new, "/v1/models", headers=headers)
                case 1:
                    client.get(f"/{new}/{new}", headers=headers)
                case 2:
                    body = {"model": new, "messages": [{"role": "user", "content": new}]}
                    body |= {"max_tokens": 1}
                    client.post("/v1/chat/completions", json=body, headers=headers)
                case 3:
                    body = {"prompt": 3, "size": new, new: new}
                    client.post("/v1/images/generations", json=body, headers=headers)
                case 4:
                    client.get(f"/v1/images/img_{new}/content", params={new: new}, headers=headers)


def series(target: Target) -> set[str]:
    """Names with their labels, once the last request has been counted."""
    time.sleep(0.2)
    return set(target.metrics())


def test_the_number_of_series_is_constant(target: Target) -> None:
    rng = random.Random(17)
    flood(target, rng, 10)
    series(target)  # to ask for them is a series of its own
    before = series(target)
    flood(target, rng, NUM_REQUESTS)
    assert series(target) == before


def test_metrics_need_a_key_where_everything_does(start_target: Callable[..., Target]) -> None:
    target = start_target(api_keys=f"ann:{KEY}", headers=BEARER)
    with target.client(headers={}) as client:
        assert client.get("/metrics").status_code == 401
    with target.client() as client:
        text = client.get("/metrics").raise_for_status().text
    assert "ann" not in re.findall(r'"(.*?)"', text), "a key's name is nobody's business"
    assert KEY not in text


def test_a_port_of_their_own_has_metrics_and_nothing_else(
    start_target: Callable[..., Target],
) -> None:
    target = start_target(
        api_keys=f"ann:{KEY}", admin_key=f"{KEY}-admin", metrics_port=0, headers=BEARER, p0=False
    )
    found = re.search(r"Metrics on (http://\S+)/metrics", target.log_text())
    assert found
    with target.client() as client:
        assert client.get("/metrics").status_code == 404
        paths = client.get("/openapi.json").json()["paths"]
    with httpx2.Client(base_url=found[1], trust_env=False) as side:
        assert "janus:num_requests_running" in side.get("/metrics").text
        probes = {"/livez", "/readyz", "/health", "/ping"}
        for probe in probes:
            assert side.get(probe).status_code == 200
        for path in {*paths, "/docs", "/openapi.json", "/", "/ui/app.js", "/admin/state"} - probes:
            for method in ("GET", "POST"):
                reply = side.request(method, path, headers=BEARER)
                assert reply.status_code in (404, 405), path
                assert reply.json()["error"]["type"]
