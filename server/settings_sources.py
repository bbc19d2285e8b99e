"""How the sources of settings are read: names in the environment, files, and what is wrong there.

Owns the messages; knows no setting. Invariant: whatever is not known is refused with its source and
the nearest name that is, and the value of a secret is never shown.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from janus_core.errors import ParameterError


def names_in(environ: Mapping[str, str], *, prefix: str) -> list[str]:
    """Settings named by the environment, without the prefix, in lower case."""
    return [name[len(prefix) :].lower() for name in environ if name.upper().startswith(prefix)]


def file_source(settings_cls: type[BaseSettings], *, path: Path) -> PydanticBaseSettingsSource:
    """The source for a settings file, by its suffix; unknown names in it are refused here."""
    if not path.is_file():
        raise ParameterError(f"The settings file {path} does not exist.", param="config")
    source: TomlConfigSettingsSource | YamlConfigSettingsSource
    try:
        if path.suffix == ".toml":
            source = TomlConfigSettingsSource(settings_cls, toml_file=path)
        elif path.suffix in {".yaml", ".yml"}:
            source = YamlConfigSettingsSource(settings_cls, yaml_file=path)
        else:
            raise ParameterError(
                f"The settings file {path} must end in .toml, .yaml or .yml.", param="config"
            )
    except (ValueError, TypeError) as error:
        raise ParameterError(
            f"The settings file {path} cannot be read: {error}", param="config"
        ) from error
    refuse_unknown(source(), list(settings_cls.model_fields), source=f"the settings file {path}")
    return source


def refuse_unknown(
    names: Iterable[str], known: Sequence[str], *, source: str, prefix: str = ""
) -> None:
    """Refuse the first name that is not among the `known` ones, with the nearest that is."""
    for name in names:
        if name in known:
            continue
        shown = f"{prefix}{name.upper()}" if prefix else name
        near = difflib.get_close_matches(name, known, n=1)
        near_shown = f"{prefix}{near[0].upper()}" if near and prefix else "".join(near)
        hint = f" Did you mean {near_shown}?" if near else ""
        raise ParameterError(f"{shown} in {source} is not a setting.{hint}", param=name)


def explained(error: ValidationError, *, secrets: Set[str]) -> ParameterError:
    """The first problem as one sentence with the setting's name and, unless it is a secret, its
    offending value."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    if name in secrets:
        return ParameterError(f"The setting {name} is not valid: {problem['msg']}.", param=name)
    return ParameterError(
        f"The setting {name} is {problem['input']!r}: {problem['msg']}.", param=name or None
    )
