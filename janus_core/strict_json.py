"""A JSON object of a checkpoint file, read field by field.

Owns the complaints: every error is a `CheckpointError` that names the file and the full path of the
field. Knows no field by name. Invariant: a value leaves this module with the type that was asked
for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from janus_core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Section:
    """`file` and `path` (empty at the top) say where `values` stand."""

    file: str
    values: Mapping[str, object]
    path: str = ""

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; without a default it must be there. null counts as absent, as in
        transformers."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(f"{self._full(name)} must be a positive integer, but is {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(f"{self._full(name)} must be a positive number, but is {value!r}")
        return float(value)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A non-empty list of positive integers."""
        value = self._get(name, default)
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(isinstance(item, int) and item > 0 for item in value)
        ):
            raise self.error(
                f"{self._full(name)} must be a list of positive integers, but is {value!r}"
            )
        return tuple(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(f"{self._full(name)} must be true or false, but is {value!r}")
        return value

    def only(self, name: str, supported: object, *, default: object = None) -> None:
        """Refuse any value but the one the network has."""
        value = self.values.get(name, default)
        if value != supported:
            raise self.error(
                f"{self._full(name)} is {value!r}, but only {supported!r} is supported"
            )

    def section(self, name: str) -> "Section":
        """The object under `name`; it must be there."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.error(f"{self._full(name)} must be an object, but is {value!r}")
        return Section(self.file, cast("dict[str, object]", value), self._full(name))

    def error(self, problem: str) -> CheckpointError:
        """An error that names the file."""
        return CheckpointError(f"{self.file}: {problem}.")

    def _get(self, name: str, default: object) -> object:
        value = self.values.get(name)
        return default if value is None else value

    def _full(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def read_object(path: Path) -> Section:
    """The JSON object in a file. Raises CheckpointError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return Section(str(path), values)
