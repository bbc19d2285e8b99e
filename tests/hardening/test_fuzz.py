"""Schemathesis over the server's OpenAPI schema: bodies, fields and paths that fit it, that do not,
and that stand at its edges. No operation is left out and no answer is filtered away; those of the
administrator are asked twice, without the key and with it.

The short version is part of every run; `make fuzz` makes 500 examples of each operation.
"""

import json
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from tests.described import described_api
from tests.hardening.target import Target, leaks_in
from tests.tiny import TinyShape, save_tiny_checkpoint

SHORT, LONG = 8, 500
ADMIN_KEY = "only-the-administrator-has-this-one"
ENVELOPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def small_target(
    _make_target, target_kind: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """With a context so short that an answer without a limit ends soon."""
    if target_kind == "naive":
        pytest.skip("a schema that declares nothing says nothing")
    folder = tmp_path_factory.mktemp("small") / "model"
    checkpoint = save_tiny_checkpoint(folder, TinyShape(max_positions=192))
    # Its routes are there then, and closed to whoever has not the key.
    target = _make_target(model=checkpoint, admin_key=ADMIN_KEY)
    yield target
    target.stop()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def _schema(num_examples: int) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_dict(described_api())
    schema.config.generation.update(max_examples=num_examples, database="none")
    return schema


def is_in_envelope(_context, response, _case) -> None:
    """Every refusal is OpenAI's error object; the health routes answer with a status instead."""
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    body = json.loads(response.content)
    if body.keys() != {"status"}:
        assert body.keys() == {"error"}, body
        assert body["error"].keys() == ENVELOPE, body


def shows_nothing_inside(_context, response, _case) -> None:
    """No address, no path of the machine, no stack."""
    kind = response.headers.get("content-type", [""])[0]
    if kind.startswith(("application/json", "text/")):
        assert not leaks_in(response.content)


CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    is_in_envelope,
    shows_nothing_inside,
]

short, long = _schema(SHORT), _schema(LONG)
admin_short, admin_long = (each.include(path_regex=r"^/admin/") for each in (short, long))


@short.parametrize()
def test_briefly(case, small_target: Target, session: requests.Session) -> None:
    case.call_and_validate(base_url=small_target.url, session=session, checks=CHECKS)


@pytest.mark.slow
@long.parametrize()
def test_at_length(case, small_target: Target, session: requests.Session) -> None:
    case.call_and_validate(base_url=small_target.url, session=session, checks=CHECKS)


def call_as_administrator(case, target: Target, session: requests.Session) -> None:
    """With the key, and whatever it has changed is changed back: a server that sleeps would refuse
    all that comes after."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    reply = case.call_and_validate(
        base_url=target.url, session=session, checks=CHECKS, headers=headers
    )
    assert reply.status_code not in (401, 403)
    for path in ("/admin/wake", "/admin/log_level?level=info"):
        back = session.post(target.url + path, headers=headers)
        assert back.status_code == 200, back.text


@admin_short.parametrize()
def test_the_administrators_briefly(case, small_target: Target, session: requests.Session) -> None:
    call_as_administrator(case, small_target, session)


@pytest.mark.slow
@admin_long.parametrize()
def test_the_administrators_at_length(
    case, small_target: Target, session: requests.Session
) -> None:
    call_as_administrator(case, small_target, session)
