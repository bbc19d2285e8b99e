"""A server with the number formats of its settings: what it says of them, and that it works."""

from pathlib import Path

import pytest

from janus_core.ops import native
from tests.serving import ServerInThread

needs_kernels = pytest.mark.skipif(native.load() is None, reason=f"no kernels: {native.problem()}")
PATH = (native.paths() or ["none"])[0]
TORCH = ("fp32 weights, fp32 KV, torch", "sdpa")


@pytest.mark.parametrize(
    ("settings", "formats", "attention"),
    [
        pytest.param({"native": False}, *TORCH, id="no kernels"),
        pytest.param({"weight_format": "fp32"}, *TORCH, id="fp32"),
        pytest.param(
            {"native": False, "weight_format": "int8", "kv_format": "fp16"},
            *("int8 weights, fp16 KV, torch", "sdpa"),
            id="int8 in torch",
        ),
        pytest.param(
            {"weight_format": "int8", "kv_format": "fp32"},
            *(f"int8 weights, fp32 KV, native {PATH}", f"native-{PATH}"),
            marks=needs_kernels,
            id="int8",
        ),
    ],
)
def test_a_server_names_its_formats_and_works_in_them(
    tiny_checkpoint: Path, settings: dict[str, object], formats: str, attention: str
) -> None:
    server = ServerInThread(model=str(tiny_checkpoint), **settings)
    with server, server.client() as client:
        version = client.get("/version").json()
        assert (version["number_formats"], version["attention_backend"]) == (formats, attention)
        assert f'number_formats="{formats}"' in client.get("/metrics").text
        question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=question).raise_for_status().json()
        assert answer["usage"]["completion_tokens"] > 0
        picture = {"prompt": "a star", "seed": 3}
        drawn = [client.post("/v1/images/generations", json=picture).json() for _ in range(2)]
        assert drawn[0]["data"] == drawn[1]["data"]
