"""The documentation says what the code does: settings, metrics, fields, commands, links, examples.

Compares tables in both directions, so that neither a new setting without a line nor a line without
a setting passes.
"""

import ast
import functools
import json
import operator
import re
from http import HTTPStatus
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from server import errors, metrics
from server.cli import app
from server.intake_settings import IntakeSettings
from server.middleware import CLIENT_GONE
from server.routes import health
from server.schemas.ask import AskRequest
from server.schemas.chat import ChatRequest
from server.schemas.codes import DecodeRequest, EncodeRequest
from server.schemas.common import Body
from server.schemas.images import (
    ImageEditRequest,
    ImageGenerationRequest,
    ImageVariationRequest,
)
from server.schemas.responses import ResponsesRequest
from server.schemas.sdapi import ImageToImage, TextToImage
from server.settings import Settings
from tests.described import described_api

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = ROOT / "docs" / "operations.md"
API = ROOT / "docs" / "api.md"

PROCESS_METRICS = {
    f"process_{name}"
    for name in (
        "virtual_memory_bytes",
        "resident_memory_bytes",
        "start_time_seconds",
        "cpu_seconds_total",
        "open_fds",
        "max_fds",
    )
}
"""prometheus_client's own, where there is a /proc."""

MAKERS = {"ErrorReply", "_Row", "HTTPException"}
"""What is called with a status first."""

PROBES = (health.livez, health.readyz, health.health, health.ping)

NO_LIMITS_OF_CLIENTS = {"max_sequences", "max_images", "max_step_s"}
"""Of the engine's steps: more than that waits, and is not refused."""

FILES = {"image"}
"""Fields of forms that are no fields of a body."""


def _section(path: Path, heading: str) -> str:
    """The text below a second-level heading, up to the next one."""
    found = re.search(
        rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", path.read_text("utf-8"), re.M | re.S
    )
    assert found, f"{path.name} has no heading {heading}"
    return found[1]


def _rows(text: str) -> list[list[str]]:
    """The cells of every table row of the text but the header and the line below it."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    rows = [line for table in tables for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def _names(text: str) -> set[str]:
    """Everything in backticks that looks like a field."""
    return set(re.findall(r"`([a-z_]+)`", text))


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {row[0]: row[1:] for row in _rows(_section(OPERATIONS, "Settings"))}
    fields = Settings.model_fields
    assert set(documented) == {f"`{name}`" for name in fields}
    for name, field in fields.items():
        default, text = documented[f"`{name}`"]
        assert default == ("" if field.default is None else f"`{field.default}`"), name
        assert text == field.description, name


def test_every_metric_is_documented() -> None:
    documented = {row[0]: row[1:] for row in _rows(_section(OPERATIONS, "Metrics"))}
    counters = {f"{metrics.PREFIX}{name}_total": spec for name, spec in metrics.COUNTERS.items()}
    histograms = {f"{metrics.PREFIX}{name}": spec for name, spec in metrics.HISTOGRAMS.items()}
    for name, spec in (counters | histograms).items():
        kind, labels, text = documented[f"`{name}`"]
        assert kind == ("counter" if name in counters else "histogram"), name
        assert labels == ", ".join(spec.labels), name
        assert text == spec.help, name
    engine = {f"{metrics.PREFIX}{name}": text for name, text in metrics.ENGINE_GAUGES.items()}
    engine |= {
        f"{metrics.PREFIX}{name}_total": text for name, text in metrics.ENGINE_COUNTERS.items()
    }
    for name, text in engine.items():
        assert documented[f"`{name}`"][2] == text, name
    others = {
        *(metrics.PREFIX + name for name in metrics.INFOS),
        metrics.PREFIX + metrics.MEMORY,
        f"{metrics.PREFIX}{metrics.DECODERS}_total",
        metrics.PREFIX + metrics.EVENT_LOOP_TASKS,
        metrics.PREFIX + metrics.SLEEP,
        f"{metrics.HTTP_COUNTER}_total",
        metrics.HTTP_HISTOGRAM,
        *PROCESS_METRICS,
    }
    names = {*counters, *histograms, *engine, *others}
    assert set(documented) == {f"`{name}`" for name in names}


def test_every_label_is_documented_with_its_values() -> None:
    text = _section(OPERATIONS, "Labels")
    labels = {row[0].strip("`") for row in _rows(text)}
    specs = {**metrics.COUNTERS, **metrics.HISTOGRAMS}
    used = {label for spec in specs.values() for label in spec.labels} - {"model_name"}
    assert used <= labels
    for name, spec in specs.items():
        if not spec.values:
            continue
        rows = [row for row in _rows(text) if row[0] == f"`{spec.labels[-1]}`" and name in row[1]]
        assert rows, name
        assert set(spec.values) <= _names(rows[0][2]), name
    assert set(metrics.TASKS) <= _names(text)


def _statuses() -> set[int]:
    """Every status that the code of the server names: in its tables, refusals and responses."""
    found = {200}
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in MAKERS and node.args:
                found.add(_status(node.args[0]))
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "HTTPStatus":
                found.add(int(HTTPStatus[node.attr]))
    found |= set(errors._STATUS_BY_CODE.values()) | set(errors._BY_STATUS) | {CLIENT_GONE}
    return found - {0}


def _status(node: ast.expr) -> int:
    """The number in the code; 0 where it is worked out from a table."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int) else 0


def test_every_status_code_is_documented() -> None:
    documented = {int(row[0]) for row in _rows(_section(OPERATIONS, "Status codes"))}
    assert documented == _statuses()


def test_every_probe_is_documented() -> None:
    documented = {row[0] for row in _rows(_section(OPERATIONS, "Probes"))}
    assert documented == {f"`/{probe.__name__}`" for probe in PROBES}


def test_every_limit_is_among_the_limits() -> None:
    """Settings that bound what a client may send or ask for are listed with what lies beyond."""
    documented = {name for row in _rows(_section(OPERATIONS, "Limits")) for name in _names(row[1])}
    documented |= {name for row in _rows(_section(OPERATIONS, "Limits")) for name in _names(row[2])}
    limits = {name for name in Settings.model_fields if name.startswith(("max_", "result_"))}
    assert limits - NO_LIMITS_OF_CLIENTS <= documented
    assert set(IntakeSettings.model_fields) <= documented


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (ChatRequest, "chat/completions"),
        (ResponsesRequest, "responses"),
        (AskRequest, "ask"),
        (ImageGenerationRequest, "images/generations"),
        (ImageEditRequest, "images/edits"),
        (ImageVariationRequest, "images/variations"),
        (DecodeRequest, "images/decode"),
        (EncodeRequest, "images/encode"),
        (TextToImage, "/sdapi/v1/txt2img"),
        (ImageToImage, "/sdapi/v1/img2img"),
    ],
)
def test_every_field_is_documented(body: type[Body], path: str) -> None:
    """Used fields in the table, the others in the paragraph that says what becomes of them."""
    section = _section(API, f"POST {path if path[0] == '/' else f'/v1/{path}'}")
    used = {name for row in _rows(section) for name in _names(row[0])}
    without_effect = re.search(r"^Accepted without effect:(.*?)\n\n", section, re.M | re.S)
    refused = re.search(
        r"^Refused(?: unless they ask for nothing)?:(.*?)\n\n", section, re.M | re.S
    )
    assert without_effect
    assert refused
    assert used - FILES == set(body.model_fields) - FILES
    assert _names(without_effect[1]) == body.without_effect
    assert body.refused.keys() <= _names(refused[1])


def _fields(operation: dict, schemas: dict) -> set[str]:
    """The fields of a request's body."""
    content = operation.get("requestBody", {}).get("content", {})
    found: set[str] = set()
    for body in content.values():
        schema = body["schema"]
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        found |= schema["properties"].keys()
    return found


TOGETHER = {
    "/v1/caption": "/v1/ask",
    "/understand_image_and_question/": "/generate_images/",
    **{f"/sdapi/v1/{name}": "/sdapi/v1/txt2img" for name in ("interrogate", "png-info", "options")},
}
"""Endpoints that are described with another one."""


def test_every_endpoint_and_its_fields_are_documented() -> None:
    """Of what OpenAPI says, nothing is missing in the text; and the table lists nothing else."""
    openapi, text = described_api(), API.read_text("utf-8")
    listed = set(re.findall(r"`((?:GET|POST) /[^`]*)`", text.partition("\n## ")[0]))
    found = set()
    for template, operations in openapi["paths"].items():
        path = re.sub(r"{.*?}", "{id}", template)
        for method, operation in operations.items():
            endpoint = f"{method.upper()} {path}"
            if path.startswith("/sdapi/v1/"):
                name = path.rpartition("/")[2]
                section = _section(API, "POST /sdapi/v1/txt2img")
                shown = "refresh-*" if name.startswith("refresh-") else name
                assert f"`{shown}`" in section or f"## {endpoint}\n" in text, endpoint
            else:
                found.add(endpoint)
            fields = _fields(operation, openapi["components"]["schemas"])
            if fields:
                section = _section(API, f"POST {TOGETHER.get(path, path)}")
                assert fields <= _names(section), endpoint
    assert listed == found


def test_openapi_refers_to_what_it_has() -> None:
    openapi = described_api()
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(openapi))):
        functools.reduce(operator.getitem, reference.split("/"), openapi)


def test_openapi_says_how_to_edit() -> None:
    edits = described_api()["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    form, body = (edits[t]["schema"] for t in ("multipart/form-data", "application/json"))
    assert form["properties"]["mask"] == {"type": "string", "format": "binary"}
    assert set(form["required"]) == {"image", "prompt"}
    assert "images" not in form["properties"]
    (reference,) = [s for s in body["properties"]["mask"]["anyOf"] if s["type"] == "object"]
    assert reference["required"] == ["image_url"]


def test_every_command_exists() -> None:
    """Wherever the documentation shows `janus something`, there is such a command."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    for page in PAGES:
        shown = set(re.findall(r"(?:^|`|bin/)janus ([a-z]+)\b", page.read_text("utf-8"), re.M))
        assert shown <= known, page.name


def test_every_command_is_documented() -> None:
    quickstart = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    operations = OPERATIONS.read_text("utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"janus {name}" in quickstart + operations


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_are_python(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        compile(code, page.name, "exec")


def test_defaults_are_values() -> None:
    """The table compares defaults as text; a factory would have none to compare."""
    factories = [n for n, f in Settings.model_fields.items() if f.default is PydanticUndefined]
    assert not factories
