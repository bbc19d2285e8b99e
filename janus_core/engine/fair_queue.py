"""The waiting requests of one kind, in the order in which they are taken: fair between tenants.

Owns who waits and how much of the engine every tenant has had; knows integers only, neither slots
nor time. The scheme is that of virtual token counters (VTC, arXiv:2401.00588): whoever has had
least is next, what is charged are row-steps (one token of one sequence computed), and a tenant that
comes back starts no lower than those who wait, so that nobody saves up. Invariants: within a tenant
requests keep the order of arrival, one that was set back too; no place is left empty for the sake
of fairness; and as every turn raises the counter of whoever had it, everybody's turn comes.
"""

from bisect import bisect_left
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from itertools import islice
from operator import attrgetter

from janus_core.engine.sequence import RequestState


class FairQueue:
    """Iterates in the order in which requests are taken if nobody comes or goes."""

    def __init__(self) -> None:
        # Tenants with waiting requests, each of them in order of arrival.
        self._lines: dict[str, list[RequestState]] = {}
        # Row-steps charged by tenant. As many entries as there are tenants, which are configured.
        self._charged: dict[str, int] = {}
        self._last = ""
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[RequestState]:
        heads = [
            (self._charged[tenant], line[0].order, tenant, 0)
            for tenant, line in self._lines.items()
        ]
        heapify(heads)
        while heads:
            charged, _, tenant, place = heads[0]
            line = self._lines[tenant]
            yield line[place]
            charged += _owed(line[place])
            place += 1
            if place < len(line):
                heapreplace(heads, (charged, line[place].order, tenant, place))
            else:
                heappop(heads)

    def first(self, most: int) -> list[RequestState]:
        """The next ones, at most so many."""
        return list(islice(self, most))

    def add(self, state: RequestState) -> None:
        """Let a request wait, before those of its tenant that arrived later."""
        tenant = state.tenant
        if tenant not in self._lines:
            waiting = [self._charged[other] for other in self._lines]
            floor = min(waiting, default=self._charged.get(self._last, 0))
            self._charged[tenant] = max(self._charged.get(tenant, 0), floor)
        line = self._lines.setdefault(tenant, [])
        line.insert(bisect_left(line, state.order, key=_order), state)
        self._num += 1

    def take(self, state: RequestState) -> None:
        """A request gets its slots. What it is known to cost is charged at once, so that who comes
        next is known too; only once, if it is set back in between."""
        self.remove(state)
        self.charge(state)
        self._last = state.tenant

    def remove(self, state: RequestState) -> None:
        """A request waits no more."""
        line = self._lines[state.tenant]
        line.remove(state)
        self._num -= 1
        if not line:
            del self._lines[state.tenant]

    def charge(self, state: RequestState) -> None:
        """Charge what has become known since the last time."""
        owed = _owed(state)
        self._charged[state.tenant] += owed
        state.num_charged += owed

    def refund(self, state: RequestState) -> None:
        """A request ends: what was charged and not computed is its tenant's again."""
        unused = state.num_charged - sum(len(sequence.tokens) for sequence in state.sequences)
        if unused > 0:
            self._charged[state.tenant] -= unused
            state.num_charged -= unused

    def charged(self, tenant: str) -> int:
        """Row-steps a tenant has been charged, or credited as a newcomer."""
        return self._charged.get(tenant, 0)

    def check_integrity(self) -> None:
        """Assert the invariants; for tests and idle moments."""
        assert self._num == sum(map(len, self._lines.values())), "a waiting request is lost"
        assert all(self._lines.values()), "a tenant without requests waits"
        for line in self._lines.values():
            orders = [state.order for state in line]
            assert orders == sorted(orders), "a request was overtaken by its own tenant"
            assert not any(state.is_running for state in line), "a running request waits"


def _owed(state: RequestState) -> int:
    """Row-steps that a request is known to cost and has not been charged: all of a picture, of an
    answer what there is of it."""
    if state.is_image:
        known = state.max_positions * len(state.sequences)
    else:
        known = len(state.sequences[0].tokens)
    return max(0, known - state.num_charged)


_order = attrgetter("order")
