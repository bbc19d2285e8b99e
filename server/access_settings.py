"""The settings of who may do what: keys, limits of keys, browsers, metrics.

Owns names, ranges, defaults; `server.settings` says where values come from. Invariant: what is
secret is a `SecretStr`, which no dump and no `repr` shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

from janus_core.errors import ParameterError
from server.intake_settings import Positive
from server.keys import check_key, parse_list
from server.origins import ANY, parse_hosts, parse_origins

SECRETS = frozenset({"api_keys", "admin_key"})


def _read_by(parse: Callable[[str], object]) -> AfterValidator:
    """Checks what will be read with `parse`, and leaves it as it is."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _keys(secret: SecretStr) -> SecretStr:
    parse_list(secret.get_secret_value(), param="api_keys")
    return secret


def _key(secret: SecretStr) -> SecretStr:
    check_key(secret.get_secret_value(), param="admin_key", what="The admin_key")
    return secret


class AccessSettings(BaseSettings):
    """Keys, and what goes with them."""

    api_keys: Annotated[SecretStr, AfterValidator(_keys)] | None = Field(
        None,
        description="API keys, separated by commas: key, or name:key. Better set in the "
        "environment than as a flag, which every user of the machine can read.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with more of them, one in a line, which may have limits of its own "
        "behind it: name:key requests_per_minute=60.",
    )
    admin_key: Annotated[SecretStr, AfterValidator(_key)] | None = Field(
        None, description="Key for /admin/*, which does not exist without one."
    )
    open_metrics: bool = Field(False, description="Answer /metrics without a key.")
    allowed_origins: Annotated[str, _read_by(parse_origins)] | None = Field(
        None,
        description="Pages of other sites that may use the server from a browser, as origins such "
        "as https://example.com, separated by commas; * is any, which needs keys. Default: none.",
    )
    allowed_hosts: Annotated[str, _read_by(parse_hosts)] | None = Field(
        None,
        description="Names in Host that the server answers to, separated by commas; *.example.com "
        "is all below example.com. Probes are answered anyway. Default: any.",
    )
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        None,
        description="Port of their own for /metrics and the probes, without keys; /metrics is then "
        "nowhere else. 0 picks a free one.",
    )
    metrics_host: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Address of metrics_port. Default: as host."
    )
    requests_per_minute: Positive | None = Field(
        None, description="Requests a key may make in a minute, and at once. Default: any number."
    )
    tokens_per_minute: Positive | None = Field(
        None,
        description="Tokens of prompts and answers, and codes of pictures, that a key may use in "
        "a minute, and at once. Default: any number.",
    )
    concurrent_requests: Positive | None = Field(
        None, description="Requests of one key answered at the same time. Default: any number."
    )

    @model_validator(mode="after")
    def _check_origins(self) -> Self:
        has_keys = self.api_keys is not None or self.api_keys_file is not None
        if self.allowed_origins and ANY in parse_origins(self.allowed_origins) and not has_keys:
            raise ParameterError(
                "allowed_origins * without keys would let every page of the web use this server.",
                param="allowed_origins",
            )
        return self
