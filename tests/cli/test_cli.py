"""The commands as a user runs them: what is printed, what is written, how they end."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import server.cli
from janus_core.images import encode_image
from janus_core.ops import native
from server.settings import Settings


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(encode_image(np.full((20, 30, 3), 200, dtype=np.uint8), "png"))
    return path


@pytest.fixture
def janus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `janus` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["janus", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            server.cli.main()
        out, err = capsys.readouterr()
        return raised.value.code or 0, out, err

    for name in ("MODEL", "DEVICE", "DTYPE", "WEIGHT_FORMAT", "KV_FORMAT", "NATIVE"):
        monkeypatch.delenv(f"JANUS_{name}", raising=False)
    monkeypatch.setenv("JANUS_THREADS", "1")  # as all tests do
    return run


def test_help_is_there_at_once() -> None:
    """Nothing heavy is loaded to show what there is."""
    check = (
        "import sys, server.cli\n"
        "try: server.cli.app(['--help'])\n"
        "finally: print({'torch', 'transformers', 'fastapi', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip().endswith("set()")
    for command in ("serve", "ask", "draw", "pull", "doctor", "bench"):
        assert f"  {command} " in done.stdout


def test_ask_prints_the_answer_and_nothing_else(janus, tiny_checkpoint: Path, image: Path) -> None:
    arguments = ("ask", image, "What is it?", "-m", tiny_checkpoint, "--max-tokens", 8)
    code, out, _ = janus(*arguments)
    assert code == 0
    assert out.strip("\n")
    assert not out[0].isspace()
    assert out.endswith("\n")
    assert janus(*arguments)[1] == out
    assert janus(*arguments, "-i", image, "--system", "Be brief.")[0] == 0


def test_draw_writes_pictures_that_say_how_they_were_made(
    janus, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "star.png"
    options = ("-m", tiny_checkpoint, "-o", output)
    code, out, _ = janus("draw", "a star", *options, "-n", 2, "--seed", 7, "--guidance", 3)
    assert code == 0
    first, second = (opened(tmp_path / f"star-{number}.png") for number in (1, 2))
    assert first.text == {
        "prompt": "a star",
        "seed": "7",
        "guidance_scale": "3.0",
        "temperature": "1.0",
        "model": tiny_checkpoint.name,
        "parameters": "a star\nSteps: 16, Sampler: Autoregressive, CFG scale: 3.0, Seed: 7, "
        f"Size: 16x16, Model: {tiny_checkpoint.name}",
    }
    assert second.text["seed"] == "8"
    assert out.splitlines() == [
        f"{tmp_path / 'star-1.png'}  seed 7",
        f"{tmp_path / 'star-2.png'}  seed 8",
    ]
    assert janus("draw", "a star", *options, "--seed", 8, "--guidance", 3)[0] == 0
    assert np.array_equal(np.asarray(opened(output)), np.asarray(second))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_draw_writes_what_the_file_name_says(
    janus, tiny_checkpoint: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"star.{suffix}"
    assert janus("draw", "a star", "-m", tiny_checkpoint, "-o", output)[0] == 0
    assert opened(output).format == {"jpg": "JPEG", "webp": "WEBP"}[suffix]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("draw", " "), "The prompt is empty."),
        (("draw", "a", "-o", "picture.tiff"), "picture.tiff must end in one of"),
        (("draw", "a", "-o", "nowhere/out.png"), "There is no directory nowhere."),
        (("draw", "a", "--guidance", "nan"), "guidance_scale must be within"),
        (("draw", "a", "--device", "tpu"), "device must be auto"),
        (("draw", "a", "--threads", "all"), "threads must be auto or a number"),
        (("draw", "a", "--threads", "99999"), "threads is 99999, but this process may run on"),
        (("ask", "missing.png", "What?"), "missing.png cannot be read"),
        (("doctor", "nobody/nothing"), ""),
        (("pull", "./not a model"), "There is no directory"),
    ],
)
def test_a_mistake_costs_one_line(
    janus,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JANUS_MODEL", str(tiny_checkpoint))
    code, _, err = janus(*arguments)
    assert code == 2
    if message:
        assert err.strip().splitlines()[-1].startswith(f"janus: {message}")
    assert "Traceback" not in err


def test_an_image_that_cannot_be_used_is_named(
    janus, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    code, _, err = janus("ask", broken, "What?", "-m", tiny_checkpoint)
    assert code == 2
    assert f"janus: {broken}: The file is no image" in err


def test_doctor_says_whether_the_model_fits_and_what_to_do(janus, tiny_checkpoint: Path) -> None:
    code, out, _ = janus("doctor", tiny_checkpoint, "--device", "cpu")
    assert code == 0
    report = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {"python", "torch", "device", "weights", "model", "next"} <= report.keys()
    assert report["device"].startswith("cpu, ")
    assert report["threads"].startswith("1, on ")
    assert report["next"] == f"janus serve {tiny_checkpoint}"
    code, out, _ = janus("doctor", "nobody/nothing", "--device", "cpu")
    assert code == 2
    assert "nobody/nothing is not on this machine. Next: janus pull nobody/nothing" in out


@pytest.mark.parametrize(
    ("flags", "formats"),
    [
        (("--no-native",), "fp32 weights, fp32 KV, torch"),
        (("--no-native", "--weight-format", "int8"), "int8 weights, fp32 KV, torch"),
        (("--weight-format", "fp32", "--kv-format", "fp32"), "fp32 weights, fp32 KV, torch"),
    ],
)
def test_doctor_says_which_kernels_and_formats_there_are(
    janus, tiny_checkpoint: Path, flags: tuple[str, ...], formats: str
) -> None:
    code, out, _ = janus("doctor", tiny_checkpoint, "--device", "cpu", *flags)
    assert code == 0
    report = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert report["formats"] == formats
    assert report["kernels"] == native.problem() or ", ".join(native.paths()) in report["kernels"]
    assert ("while they are read" in report["weights"]) == formats.startswith("int8")


@pytest.mark.skipif(native.load() is None, reason=f"no kernels: {native.problem()}")
def test_doctor_names_the_kernels_in_use(janus, tiny_checkpoint: Path) -> None:
    options = ("--device", "cpu", "--weight-format", "int8")
    report = janus("doctor", tiny_checkpoint, *options)[1]
    assert f"int8 weights, fp16 KV, native {native.paths()[0]}" in report


@pytest.mark.parametrize("weight_format", ["auto", "fp16", "int8"])
def test_pictures_are_drawn_without_the_kernels(
    janus, tiny_checkpoint: Path, tmp_path: Path, weight_format: str
) -> None:
    options = ("-m", tiny_checkpoint, "-o", tmp_path / "star.png", "--seed", 3)
    flags = ("--no-native", "--weight-format", weight_format)
    assert janus("draw", "a star", *options, *flags)[0] == 0
    drawn = np.asarray(opened(tmp_path / "star.png"))
    if weight_format == "auto":
        assert janus("draw", "a star", *options, "--weight-format", "fp32")[0] == 0
        assert np.array_equal(drawn, np.asarray(opened(tmp_path / "star.png")))


def test_pull_finds_what_is_local(janus, tiny_checkpoint: Path) -> None:
    code, out, _ = janus("pull", tiny_checkpoint)
    assert code == 0
    assert str(tiny_checkpoint) in out


def test_serve_has_a_flag_for_every_setting(janus) -> None:
    code, out, _ = janus("serve", "--help")
    assert code == 0
    for name in Settings.model_fields:
        assert name in out if name == "model" else f"--{name.replace('_', '-')}" in out


def test_serve_hands_flags_to_the_server(janus, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(server, "run", lambda settings: seen.append(settings) or 3)
    code, _, _ = janus("serve", "some/model", "--port", "9000", "--no-prefix-cache")
    assert code == 3
    assert (seen[0].model, seen[0].port, seen[0].prefix_cache) == ("some/model", 9000, False)
    code, _, err = janus("serve", "--port", "99999")
    assert code == 2
    assert "port" in err
    code, _, err = janus("serve", "--prot", "9000")
    assert code == 2
    assert "--prot" in err
    assert len(seen) == 1
