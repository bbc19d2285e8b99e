"""How much may be computed for later requests while one waits for its first slot.

Owns the ledger of one that waits: who has come behind it, and what has been computed for them. The
bound is that of virtual token counters (VTC, arXiv:2401.00588): later requests of its own tenant
get nothing, another tenant's what that tenant had been charged less, and one request more. Between
answers and pictures nothing is owed. Invariant: of the queue the bound knows only what it had
charged when somebody came.
"""

from collections import Counter

from janus_core.engine.fair_queue import FairQueue
from janus_core.engine.plan import Chunk
from janus_core.engine.sequence import RequestState


def cost_of(state: RequestState) -> int:
    """Tokens computed for a request, at most, if it is not set back."""
    return state.max_positions * len(state.sequences)


class Wait:
    """Of `state`, which is in the `queue` behind those `ahead`; `at_set_backs` is how many requests
    had been set back by then."""

    def __init__(
        self,
        state: RequestState,
        ahead: list[RequestState],
        queue: FairQueue,
        *,
        at_set_backs: int,
    ) -> None:
        self.state = state
        self.at_set_backs = at_set_backs
        self.computed: Counter[str] = Counter()
        own = [s for s in ahead if s.tenant == state.tenant and s.is_image == state.is_image]
        owed = sum(max(0, cost_of(each) - each.num_charged) for each in own)
        self._due = queue.charged(state.tenant) + owed
        self._queue = queue
        self._charged: dict[str, int] = {}
        self._refunds: Counter[str] = Counter()
        self._excused: set[RequestState] = set()

    def is_before(self, other: RequestState) -> bool:
        """Whether another request of the kind came later."""
        return other.is_image == self.state.is_image and other.order > self.state.order

    def come(self, later: RequestState) -> None:
        """Another one arrives."""
        if later.is_image == self.state.is_image:
            self._charged.setdefault(later.tenant, self._queue.charged(later.tenant))

    def excuse(self, later: RequestState) -> None:
        """Another one starts before it, because its own prefix is being computed."""
        self._excused.add(later)

    def refund(self, tenant: str, num_tokens: int) -> None:
        """A tenant was given back what it had been charged."""
        self._refunds[tenant] += num_tokens

    def count(self, chunk: Chunk) -> None:
        """Something is computed."""
        if self.is_before(chunk.state) and chunk.state not in self._excused:
            self.computed[chunk.state.tenant] += chunk.num_tokens

    def most(self, tenant: str, *, one_more: int) -> int:
        """What may be computed for later requests of a tenant."""
        if tenant == self.state.tenant:
            return 0
        owed = max(0, self._due - self._charged[tenant])
        return owed + self._refunds[tenant] + one_more
