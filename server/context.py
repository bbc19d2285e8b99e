"""What every route needs, gathered once when the app is made.

Owns the names the model answers to; knows no route. Invariant: immutable, and reached through the
app, so that two apps in one process share nothing.
"""

import hashlib
import re
from dataclasses import dataclass

from starlette.requests import Request

from janus_core.errors import RequestError
from janus_core.pipeline import Pipeline
from server.administration import Administration
from server.crowding import Crowding
from server.dispatch import Dispatcher
from server.fetch import Fetcher
from server.live_drawings import LiveDrawings
from server.metrics import Metrics
from server.offload import Offload
from server.results import ResultStore
from server.settings import Settings

_IMAGE_ALIASES = re.compile(r"dall-e-[23]|(chat)?gpt-image-[a-z0-9.-]+")
"""Clients with a fixed list of image models send these; they get the only one there is."""


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of a running server. `created` is when it started, in Unix seconds.

    Input images are decoded in `decoding`, what waits for the autoencoder is done in `autoencoder`,
    everything else that would hold up the event loop in `offload`: it takes milliseconds, and must
    not wait behind seconds.
    """

    settings: Settings
    pipeline: Pipeline
    dispatcher: Dispatcher
    crowding: Crowding
    administration: Administration
    metrics: Metrics
    offload: Offload
    decoding: Offload
    autoencoder: Offload
    results: ResultStore
    drawings: LiveDrawings
    fetcher: Fetcher
    version: str
    created: int

    @property
    def model_name(self) -> str:
        """The name clients use."""
        return self.pipeline.name

    @property
    def picture_model(self) -> str:
        """The name of the model as one that answers with pictures wherever it can."""
        return f"{self.model_name}:image"

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes when equal seeds may stop giving equal results."""
        parts = (self.version, self.model_name, *self.description().values())
        return f"fp_{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:12]}"

    def description(self) -> dict[str, str]:
        """What runs here, in words."""
        pipeline = self.pipeline
        return {
            "version": self.version,
            "device": pipeline.device,
            "dtype": pipeline.dtype,
            "number_formats": pipeline.number_formats,
            "attention_backend": pipeline.attention_backend,
            "threads": str(pipeline.num_threads),
        }

    def check_model(self, name: str | None, *, draws: bool = False) -> None:
        """Refuse a model that is not served (RequestError, 404); no name means the only one."""
        if name is None or name == self.model_name:
            return
        if draws and (name == self.picture_model or _IMAGE_ALIASES.fullmatch(name)):
            return
        raise RequestError(
            f"The model asked for does not exist; this server has {self.model_name!a}.",
            param="model",
            code="model_not_found",
        )


def context_of(request: Request) -> Context:
    """The context of the app that answers `request`."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def base_url_of(request: Request) -> str:
    """Where clients reach this server: as the settings say, or as this request did."""
    return context_of(request).settings.public_url or str(request.base_url)
