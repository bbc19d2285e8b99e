"""Who may do what: with keys, everything that is not listed as open needs one."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from server.access import PROBES
from tests.serving import ServerInThread

KEY, OTHER_KEY, ADMIN_KEY = "sk-first-of-the-keys", "sk-second-of-the-keys", "sk-of-the-admin"


@pytest.fixture(scope="module")
def locked(tiny_checkpoint: Path) -> Iterator[ServerInThread]:
    with ServerInThread(
        model=str(tiny_checkpoint),
        served_model_name="tiny",
        api_keys=f"ann:{KEY},bob:{OTHER_KEY}",
        admin_key=ADMIN_KEY,
    ) as running:
        yield running


@pytest.fixture
def anyone(locked: ServerInThread) -> Iterator[httpx2.Client]:
    with locked.client() as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_needs_a_key_but_those_listed(
    locked: ServerInThread, anyone: httpx2.Client
) -> None:
    openapi = locked.app.openapi()["paths"]
    methods = {path: [name.upper() for name in found] for path, found in openapi.items()}
    methods |= {path: ["GET"] for path in ("/docs", "/redoc", "/openapi.json", "/nowhere", "/")}
    open_paths = {
        template
        for template, names in methods.items()
        for name in names
        if anyone.request(name, re.sub("{.*?}", "x", template)).status_code != 401
    }
    assert open_paths - {"/"} == PROBES


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(KEY[:-1]),
        bearer(f"{KEY} {KEY}"),
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Basic YW5uOnNrLWZpcnN0LW9mLXRoZS1rZXlz"},  # right, but not here
        {"authorization": "Bearer"},
        {"authorization": ""},
        {"x-api-key": KEY},
    ],
)
def test_no_key_or_a_wrong_one_is_401(anyone: httpx2.Client, headers: dict[str, str]) -> None:
    reply = anyone.get("/v1/models", headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        None,
        "invalid_api_key",
    )
    assert KEY not in reply.text


def test_two_keys_are_none(anyone: httpx2.Client) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer wrong")]
    assert anyone.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_opens(anyone: httpx2.Client, scheme: str) -> None:
    for key in (KEY, OTHER_KEY, ADMIN_KEY):
        headers = {"authorization": f"{scheme} {key}"}
        assert anyone.get("/v1/models", headers=headers).status_code == 200
        assert anyone.get("/metrics", headers=headers).status_code == 200


def test_sdapi_takes_the_key_as_a_password(anyone: httpx2.Client) -> None:
    assert anyone.get("/sdapi/v1/samplers").status_code == 401
    assert anyone.get("/sdapi/v1/samplers", auth=("whoever", "wrong")).status_code == 401
    assert anyone.get("/sdapi/v1/samplers", auth=("whoever", KEY)).status_code == 200


def test_the_administrators_routes_need_the_administrators_key(anyone: httpx2.Client) -> None:
    assert anyone.get("/admin/state").status_code == 401
    reply = anyone.get("/admin/state", headers=bearer(KEY))
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "admin_key_required"


def test_probes_need_no_key(anyone: httpx2.Client) -> None:
    for path in ("/livez", "/readyz", "/health", "/ping"):
        assert anyone.get(path).status_code == 200


def test_a_wrong_key_is_counted(anyone: httpx2.Client) -> None:
    anyone.get("/v1/models")
    text = anyone.get("/metrics", headers=bearer(KEY)).text
    assert 'janus:requests_rejected_total{model_name="tiny",reason="invalid_api_key"}' in text


def test_without_keys_everything_is_open_but_the_administrators(client: httpx2.Client) -> None:
    assert client.get("/v1/models").status_code == 200
    assert client.get("/metrics").status_code == 200
    assert client.get("/admin/state").status_code == 404
