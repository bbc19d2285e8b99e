"""`janus serve`: every setting as a flag.

Owns the translation from flags to settings; names, defaults and checks are those of
`server.settings`. Invariant: there is a flag for every setting and none beside them, because they
are made from one list.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

import server
from server.settings import Settings, load_settings


def serve_with(arguments: list[str]) -> int:
    """Parse the arguments, build the settings, serve until stopped; returns the exit code."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_command())
    command = typer.main.get_command(app)
    result = command.main(arguments, prog_name="janus serve", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _command() -> Callable[..., int]:
    """A function with one parameter per setting, from which typer makes the flags and the help."""

    def serve(**flags: object) -> int:
        """Serve a model over HTTP, as OpenAI's API. Settings come from flags, then JANUS_*
        variables, then the file named by --config, then the defaults shown here."""
        return server.run(load_settings(flags))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=_flag(name, field),
        )
        for name, field in Settings.model_fields.items()
    ]
    # typer reads both: the signature for the defaults, the annotations for the types.
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {each.name: each.annotation for each in parameters}
    return serve


def _flag(name: str, field: FieldInfo) -> Any:
    """The annotation typer turns into a flag. Values stay strings: `load_settings` checks them."""
    default = "" if field.default is None else f" [default: {field.default}]"
    help = f"{field.description}{default}"
    if name == "model":
        return Annotated[str | None, typer.Argument(help=help, show_default=False)]
    if field.annotation is bool:
        return Annotated[bool | None, typer.Option(help=help, show_default=False)]
    return Annotated[str | None, typer.Option(help=help, show_default=False)]
