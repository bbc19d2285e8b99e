"""docs/clients.md: a recipe for every client that is tested, short enough to be read."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text("utf-8")
MAX_LINES = 10
CLIENTS = (
    *("openai for Python", "openai for Node", "LangChain", "LlamaIndex", "LiteLLM"),
    *("Vercel AI SDK", "Open WebUI", "n8n", "SillyTavern", "Frigate", "Home Assistant"),
    *("sdwebuiapi and other AUTOMATIC1111 clients", "DeepSeek's demo client"),
)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_has_a_recipe(client: str):
    assert client in SECTIONS


@pytest.mark.parametrize("title", SECTIONS)
def test_recipes_are_short(title: str):
    for block in re.findall(r"^```.*?\n(.*?)^```", SECTIONS[title], re.M | re.S):
        assert len(block.splitlines()) <= MAX_LINES
    prose = re.sub(r"^```.*?^```", "", SECTIONS[title], flags=re.M | re.S)
    assert len([line for line in prose.splitlines() if line]) <= MAX_LINES
