"""The shape of the source: imports go downwards only, and files stay small enough to read.

Reads the syntax trees; imports nothing of the product. `docs/architecture.md` explains the layers.
"""

import ast
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("janus_core", "server")
MAX_LINES, MAX_FUNCTION_LINES, P90_FUNCTION_LINES = 400, 60, 30

# What each part of janus_core may import from its own package, besides itself. Written from the
# bottom up: whatever is missing on the right would be an import upwards.
ALLOWED = {
    "errors": set(),
    "threads": {"errors"},
    "strict_json": {"errors"},
    "config": {"strict_json", "errors"},
    "tokenizer": {"strict_json", "errors"},
    "images": {"errors"},
    "image_processor": {"images", "strict_json", "errors"},
    "image_decoder": {"image_processor", "images", "errors"},
    "decode_frames": set(),
    "decode_worker": {"decode_frames", "image_decoder", "images", "errors"},
    "decode_pool": {"decode_frames", "decode_worker", "image_decoder", "images", "errors"},
    "prompt": {"tokenizer", "strict_json", "config", "errors"},
    # engine.request is a plain description of work: what to draw is said there, how is done here.
    # engine.settings has the unit of slots, which attention reads whole.
    "ops": {
        *("engine.request", "engine.settings", "models.inputs", "models.kv_pool"),
        *("config", "errors"),
    },
    "models": {"ops", "config", "errors"},
    "checkpoint": {"models", "ops.formats", "strict_json", "config", "errors"},
    "engine": {"models", "ops", "tokenizer", "config", "threads", "errors"},
    "device": {"ops.formats", "ops.native", "engine.settings", "config", "threads", "errors"},
    "options": {"engine.request", "errors", "strict_json"},
    "codec": {"engine.render", "models", "ops.streams", "images", "errors"},
    "sleep": {"codec", "checkpoint", "config", "device", "engine", "models"},
    "pipeline": {
        *(
            "sleep",
            "device",
            "engine",
            "checkpoint",
            "codec",
            "models",
            "options",
            "ops.attention",
            "ops.streams",
            "prompt",
            "images",
            "image_decoder",
            "image_processor",
            "tokenizer",
        ),
        *("strict_json", "config", "errors"),
    },
}

# Decided with integers: these must work, and be tested, without a tensor library.
WITHOUT_TORCH = (
    "janus_core/errors.py",
    "janus_core/threads.py",
    "janus_core/config.py",
    "janus_core/tokenizer.py",
    "janus_core/prompt.py",
    "janus_core/images.py",
    "janus_core/image_decoder.py",
    "janus_core/decode_worker.py",
    "janus_core/decode_pool.py",
    "janus_core/engine/request.py",
    "janus_core/engine/events.py",
    "janus_core/engine/settings.py",
    "janus_core/engine/sequence.py",
    "janus_core/engine/slots.py",
    "janus_core/engine/scheduler.py",
)

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERY_SOURCE = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(path: Path) -> Iterator[str]:
    """Yield the dotted names a file imports, wherever in the file; relative ones are resolved."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{_name(path)}:{node.name}", node.end_lineno - node.lineno + 1


def _within(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_go_downwards(path: Path) -> None:
    module = path.relative_to(ROOT).with_suffix("").parts
    if module[0] == "server":
        return
    assert not [name for name in _imports(path) if _within(name, {"server"})]
    if len(module) == 2 and module[1] == "__init__":
        assert not [name for name in _imports(path) if name.startswith("janus_core")]
        return
    layer = module[1]
    assert layer in ALLOWED, f"{_name(path)} belongs to no layer: say in ALLOWED what it may import"
    own = [name.removeprefix("janus_core.") for name in _imports(path) if "janus_core" in name]
    assert not [name for name in own if not _within(name, {layer, *ALLOWED[layer]})]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_of_the_product_imports_tests_or_tools(path: Path) -> None:
    assert not [
        name for name in _imports(path) if _within(name, {"tests", "benchmarks", "weights"})
    ]


@pytest.mark.parametrize("path", [p for p in SOURCES if "server" in p.parts], ids=_name)
def test_the_server_never_imports_torch(path: Path) -> None:
    forbidden = {"torch", "transformers", "janus_core.models", "janus_core.ops"}
    assert not [name for name in _imports(path) if _within(name, forbidden)]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_integers_only(name: str) -> None:
    """Neither the file nor anything of ours that it imports needs torch."""
    waiting, seen = [ROOT / name], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        imported = list(_imports(path))
        tensors = [each for each in imported if _within(each, {"torch", "transformers"})]
        assert not tensors, f"{_name(path)} imports {tensors}"
        for each in imported:
            parts = each.split(".")
            waiting.extend(
                file
                for depth in range(1, len(parts) + 1)
                if (file := ROOT.joinpath(*parts[:depth]).with_suffix(".py")).is_file()
            )
    assert len(seen) >= 1


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=_name)
def test_files_are_short_and_say_what_they_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(_tree(path)), "the module docstring is missing"


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=_name)
def test_importing_does_no_work(path: Path) -> None:
    """At the top of a file: definitions, constants, imports. No loops and no bare calls."""
    loops = [
        node.lineno
        for node in _tree(path).body
        if isinstance(node, ast.For | ast.While | ast.With)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    ]
    assert not loops, f"work at import in lines {loops}"


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=_name)
def test_functions_are_short(path: Path) -> None:
    assert not [(name, lines) for name, lines in _functions(path) if lines > MAX_FUNCTION_LINES]


def test_nine_functions_of_ten_fit_half_a_screen() -> None:
    lengths = [lines for path in SOURCES for _, lines in _functions(path)]
    assert statistics.quantiles(lengths, n=10)[-1] <= P90_FUNCTION_LINES


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_boolean_by_position(path: Path) -> None:
    """`f(x, True)` says nothing to its reader."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            flags = [
                argument.arg
                for argument in (*node.args.posonlyargs, *node.args.args)
                if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "bool"
            ]
            assert not flags, f"{node.name} takes {flags} by position"


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=_name)
def test_one_word_for_one_thing(path: Path) -> None:
    """The words of the architecture have no abbreviations, and no drawer is called utils."""
    assert path.stem not in {"utils", "util", "helpers", "misc"}
    synonyms = {"req", "reqs", "uid", "uids", "seq", "seqs", "preempt", "preempted"}
    names = {
        node.id if isinstance(node, ast.Name) else node.arg
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Name | ast.arg)
    }
    assert not names & synonyms
    assert not [
        word for word in ("TODO", "FIXME") if word in path.read_text(encoding="utf-8").split()
    ]
