"""How keys are written down, what is kept of them, and what errors say about them: nothing."""

import hashlib
from pathlib import Path

import pytest

from janus_core.errors import ParameterError
from server.keys import Keyring, parse_list, read_file
from server.principal import Limits
from server.settings import Settings, load_settings

SECRET = "sk-" + "canary" * 5


def keyring(text: str, **options: object) -> Keyring:
    return Keyring(parse_list(text, param="api_keys"), limits=Limits(), **options)


def test_keys_have_names_and_these_are_the_tenants() -> None:
    keys = keyring("sk-one, robot:sk-two,robot:sk-three")
    assert [keys.owner_of(f"sk-{n}").name for n in ("one", "two", "three")] == [
        "key-1",
        "robot",
        "robot",
    ]
    assert keys.owner_of("sk-two").tenant == keys.owner_of("sk-three").tenant == "robot"
    assert keys.owner_of("sk-one").tenant != keys.owner_of("sk-two").tenant
    assert keys.owner_of("sk-tw") is keys.owner_of("sk-twoo") is keys.owner_of("") is None


def test_nothing_shows_a_key() -> None:
    entries = parse_list(SECRET, param="api_keys")
    keys = Keyring(entries, admin_key=f"{SECRET}-admin", limits=Limits())
    digest = hashlib.sha256(SECRET.encode()).digest()
    settings = Settings(api_keys=SECRET, admin_key=SECRET)
    shown = [entries, vars(keys).keys(), keys.owner_of(SECRET), settings, settings.model_dump()]
    shown += [settings.model_dump_json(), str(settings)]
    for text in map(repr, shown):
        assert SECRET not in text
        assert repr(digest)[2:-1] not in text
        assert digest.hex() not in text


@pytest.mark.parametrize(
    "text",
    [f"{SECRET},,x", f"a b:{SECRET}", f"{SECRET} ä", f"{SECRET}é", f"admin:{SECRET}", f"-:{SECRET}",
     f"{SECRET} requests_per_minute=0", f"{SECRET},{SECRET}", f"a:{SECRET}:b:"],
)  # fmt: skip
def test_bad_keys_are_refused_without_being_shown(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both_ways() -> None:
        Keyring(parse_list(text, param="api_keys"), limits=Limits())

    with pytest.raises(ParameterError) as refused:
        both_ways()
    assert refused.value.param == "api_keys"
    assert "canary" not in refused.value.message
    if ",," not in text and f",{SECRET}" not in text:
        (tmp_path / "keys").write_text(text, "utf-8")
        with pytest.raises(ParameterError) as refused:
            read_file(tmp_path / "keys")
        assert "canary" not in refused.value.message
    if f",{SECRET}" not in text:  # told by the keyring only
        monkeypatch.setenv("JANUS_API_KEYS", text)
        with pytest.raises(ParameterError) as refused:
            load_settings()
        assert "canary" not in refused.value.message


def test_a_file_has_a_key_in_a_line_and_limits_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(
        "# ours\n\nrobot:sk-two  requests_per_minute=60 concurrent_requests=2\nsk-three"
    )
    keys = Keyring(read_file(path), limits=Limits(tokens_per_minute=9, requests_per_minute=1))
    assert keys.owner_of("sk-two").limits == Limits(60, 9, 2)
    assert keys.owner_of("sk-three").limits == Limits(1, 9, None)


@pytest.mark.parametrize("text", ["", "# nothing\n", None])
def test_a_file_without_keys_opens_nothing(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParameterError):
        read_file(path)


def test_every_key_is_compared_in_constant_time_whichever_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("server.keys.hmac.compare_digest", compare)
    keys = keyring("sk-one,sk-two,sk-three", admin_key="sk-admin")
    for key in ("sk-one", "sk-three", "none"):
        compared.clear()
        keys.owner_of(key)
        assert len(compared) == 4
        assert all(len(part) == 32 for pair in compared for part in pair)


def test_an_unset_variable_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_API_KEYS", "")
    assert load_settings().api_keys is None
