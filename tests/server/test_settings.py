"""Settings: where they come from, who wins, and what is refused."""

from pathlib import Path

import pytest

from janus_core.errors import ParameterError
from server.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"JANUS_{name.upper()}", raising=False)


def test_defaults_listen_on_the_loopback_only():
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("name", "content"),
    [("janus.toml", "port = 3\nmax_choices = 3\n"), ("janus.yaml", "port: 3\nmax_choices: 3\n")],
)
def test_flags_beat_variables_beat_the_file(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / name
    path.write_text(content)
    monkeypatch.setenv("JANUS_CONFIG", str(path))
    assert (load_settings().port, load_settings().max_choices) == (3, 3)
    monkeypatch.setenv("JANUS_PORT", "2")
    assert load_settings().port == 2
    assert load_settings({"port": 1}).port == 1
    assert load_settings({"port": None}).port == 2


def test_unknown_names_are_refused_with_the_nearest_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ParameterError, match=r"prot in the command line .* mean port") as caught:
        load_settings({"prot": 1})
    assert caught.value.param == "prot"
    path = tmp_path / "janus.toml"
    path.write_text("prot = 1\n")
    with pytest.raises(ParameterError, match=r"janus\.toml is not a setting\. Did you mean port"):
        load_settings({"config": path})
    monkeypatch.setenv("JANUS_PROT", "1")
    with pytest.raises(ParameterError, match=r"JANUS_PROT .* mean JANUS_PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65_536),
        ("port", "http"),
        # The empty address is every address of the machine.
        ("host", ""),
        ("grace_s", float("nan")),
        ("grace_s", 0),
        ("dtype", "int3"),
        ("max_sequences", 1),
        ("log_level", "loud"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: object):
    with pytest.raises(ParameterError, match=f"The setting {name} is") as caught:
        load_settings({name: value})
    assert caught.value.param == name


def test_a_settings_file_must_exist_and_be_readable(tmp_path: Path):
    with pytest.raises(ParameterError, match="does not exist"):
        load_settings({"config": tmp_path / "none.toml"})
    broken = tmp_path / "broken.toml"
    broken.write_text("port = [")
    with pytest.raises(ParameterError, match="cannot be read"):
        load_settings({"config": broken})
    other = tmp_path / "settings.ini"
    other.write_text("port=1")
    with pytest.raises(ParameterError, match="must end in"):
        load_settings({"config": other})


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_threads_are_a_number_or_auto(monkeypatch: pytest.MonkeyPatch):
    assert load_settings().threads == 0
    for given, meant in (("auto", 0), ("0", 0), ("4", 4)):
        monkeypatch.setenv("JANUS_THREADS", given)
        assert load_settings().threads == meant
        assert load_settings({"threads": given}).threads == meant
    for wrong in ("-1", "many", "1.5"):
        with pytest.raises(ParameterError, match="threads must be auto or a number") as refusal:
            load_settings({"threads": wrong})
        assert refusal.value.param == "threads"
