"""Whether one more request may wait: by places and bytes, and beside other tenants.

Owns what was accepted and has no slots yet; knows neither the scheduler nor time. Invariants: what
waits never exceeds the bounds, but for a single request that is larger than all of them; however
many requests a tenant sends, a place is left for another one; and pictures, each of which waits for
seconds, take no place from text, nor text from pictures.
"""

from dataclasses import dataclass

from janus_core.engine.request import ImageRequest, Request, TextRequest
from janus_core.engine.settings import EngineSettings

TENANT_SHARE = 3
"""A tenant may have so many times what is left: three quarters of an empty queue, less beside
others, and never all (dynamic thresholds, Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998). Where
nobody has a name there is only one tenant, and nothing to keep."""

BYTES_PER_TOKEN = 40
"""A Python integer and the place that refers to it."""


@dataclass(frozen=True, slots=True)
class _Ticket:
    tenant: str
    is_image: bool
    num_bytes: int


class WaitingRoom:
    """Not thread-safe."""

    def __init__(self, settings: EngineSettings) -> None:
        self._max_places = settings.max_waiting
        self._max_bytes = settings.max_waiting_bytes
        self._tickets: dict[str, _Ticket] = {}
        self._num_bytes = 0
        # Requests by tenant, of either kind.
        self._texts: dict[str, int] = {}
        self._images: dict[str, int] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._tickets)

    @property
    def num_bytes(self) -> int:
        """Of everything that waits."""
        return self._num_bytes

    def refusal(self, tenant: str, *, is_image: bool, num_bytes: int = 0) -> str | None:
        """Why a request of a kind and of so many bytes may not wait now, as a sentence; None if it
        may. Places are counted by kind, bytes together."""
        what, line = ("pictures", self._images) if is_image else ("answers", self._texts)
        num_waiting = sum(line.values())
        if num_waiting >= self._max_places:
            return f"{num_waiting} {what} are waiting already, as many as may."
        if self._tickets and self._num_bytes + num_bytes > self._max_bytes:
            return (
                f"The waiting requests have {self._num_bytes} bytes already; {num_bytes} more "
                f"would exceed {self._max_bytes}."
            )
        num_own = line.get(tenant, 0)
        if not tenant or not self._tickets:
            return None
        if num_own and num_own >= TENANT_SHARE * (self._max_places - num_waiting):
            return f"{num_own} {what} of this key are waiting already, as many as may."
        own = sum(each.num_bytes for each in self._tickets.values() if each.tenant == tenant)
        if exceeds_share(own, num_bytes, left=self._max_bytes - self._num_bytes - num_bytes):
            return "The waiting requests of this key have as many bytes as they may."
        return None

    def enter(self, request: Request) -> None:
        """A request waits from now on."""
        is_image = isinstance(request, ImageRequest)
        ticket = _Ticket(request.tenant, is_image, num_bytes_of(request))
        self._tickets[request.id] = ticket
        self._num_bytes += ticket.num_bytes
        line = self._images if is_image else self._texts
        line[ticket.tenant] = line.get(ticket.tenant, 0) + 1

    def leave(self, request_id: str) -> None:
        """A request has its slots, or has ended; without effect if it left before."""
        ticket = self._tickets.pop(request_id, None)
        if ticket is None:
            return
        self._num_bytes -= ticket.num_bytes
        line = self._images if ticket.is_image else self._texts
        line[ticket.tenant] -= 1
        if not line[ticket.tenant]:
            del line[ticket.tenant]

    def num_ahead(self, tenant: str, *, is_image: bool, num_more: int = 1) -> int:
        """How many waiting requests of a kind go before the last of `num_more` that a tenant sent
        now: its own, and of every other tenant's one for each of them, because they take turns."""
        line = self._images if is_image else self._texts
        own = line.get(tenant, 0) + num_more - 1
        others = (num for other, num in line.items() if other != tenant)
        return own + sum(min(num, own + 1) for num in others)


def num_bytes_of(request: Request) -> int:
    """Memory that a waiting request holds: pixels, above all."""
    images = request.images if isinstance(request, TextRequest) else ()
    num_tokens = len(request.token_ids)
    if isinstance(request, ImageRequest):
        num_tokens += len(request.uncond_token_ids or ()) + len(request.forced_codes)
    return BYTES_PER_TOKEN * num_tokens + sum(image.pixels_CHW.nbytes for image in images)


def exceeds_share(own: int, more: int, *, left: int) -> bool:
    """Whether a tenant that has `own`, and with `more` leaves `left`, would have more than its
    share. One that has nothing never has."""
    return own > 0 and own + more > TENANT_SHARE * left
