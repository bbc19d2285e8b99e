"""The drawings that run for clients who ask how far they are, from outside of their request.

Owns what has been seen of each drawing so far; knows no endpoint and no pixels' format. Used on the
event loop only. Invariants: a drawing is listed exactly as long as somebody waits for it, and
nobody sees or ends those of another tenant.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from janus_core.engine.events import Finished, ImageProgress, Pixels, Preview
from server.dispatch import RequestHandle


@dataclass(slots=True)
class LiveDrawing:
    """The pictures of one HTTP request on their way, for `tenant`. `shown` is the newest half-drawn
    one."""

    handle: RequestHandle
    num_pictures: int
    num_codes: int
    task_id: str
    tenant: str
    num_drawn: dict[int, int] = field(default_factory=dict)
    shown: Pixels | None = None
    previews: dict[int, Pixels] = field(default_factory=dict)
    finished: dict[int, Pixels] = field(default_factory=dict)
    _encoding: asyncio.Lock = field(default_factory=asyncio.Lock)
    _encoded: tuple[Pixels, str] | None = None

    @property
    def progress(self) -> float:
        """0 to 1, over all pictures and all their codes."""
        return sum(self.num_drawn.values()) / (self.num_pictures * self.num_codes)

    async def shown_file(self, encode: Callable[[Pixels], Awaitable[str]]) -> str | None:
        """`shown` as `encode` makes it a file: once, for all who ask while it is the newest."""
        async with self._encoding:
            if self.shown is None:
                return None
            if self._encoded is None or self._encoded[0] is not self.shown:
                shown = self.shown  # there may be a newer one by the time this is encoded
                self._encoded = shown, await encode(shown)
            return self._encoded[1]

    async def run(self) -> None:
        """Follow the drawing to its end; an interrupted one ends with what there is."""
        async for item in self.handle.events():
            assert item is not None, "only an idle limit makes silence visible"
            index, event = item
            if isinstance(event, ImageProgress):
                self.num_drawn[index] = event.num_codes
            elif isinstance(event, Preview):
                self.previews[index] = self.shown = event.pixels
            elif isinstance(event, Finished) and event.pixels is not None:
                self.num_drawn[index] = self.num_codes
                self.finished[index] = self.shown = event.pixels

    def pictures(self) -> dict[int, Pixels]:
        """By index: what is finished, and of what was interrupted its last state, if any."""
        return dict(sorted((self.previews | self.finished).items()))


class LiveDrawings:
    """All of them, in the order they came."""

    def __init__(self) -> None:
        self._drawings: list[LiveDrawing] = []

    @contextmanager
    def listed(self, drawing: LiveDrawing) -> Iterator[LiveDrawing]:
        """List a drawing while the context lasts."""
        self._drawings.append(drawing)
        try:
            yield drawing
        finally:
            self._drawings.remove(drawing)

    def of(self, tenant: str) -> list[LiveDrawing]:
        """Those of one tenant."""
        return [drawing for drawing in self._drawings if drawing.tenant == tenant]

    def interrupt(self, tenant: str) -> None:
        """End all of a tenant; whoever waits gets what is there."""
        for drawing in self.of(tenant):
            drawing.handle.interrupt()
