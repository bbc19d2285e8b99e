"""What each key may use in a minute and at once: token buckets, and a count of what runs.

Owns the accounts; knows no HTTP but the names of its headers. Used on the event loop only.
Invariants: an account belongs to a name from the settings, so that no client can make one; what was
reserved for a request and not used is given back when it ends.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from janus_core.engine.events import Failed, Finished
from janus_core.engine.request import ImageRequest, Request
from janus_core.errors import RateLimitError
from server.principal import Principal

MINUTE_S = 60.0

BUSY_RETRY_S = 1.0
"""When to ask again while as many requests as may are being answered: nothing tells how long."""


@dataclass(slots=True)
class Bucket:
    """Fills with `per_minute` a minute, and holds as much.

    It can be owed to: whoever wants more than it holds gets it when it is full, and the others wait
    until the debt is paid. Else an expensive request could never be made at all.
    """

    per_minute: int
    filled_s: float
    level: float

    def fill(self, now_s: float) -> None:
        """Add what has come since the last time."""
        gained = (now_s - self.filled_s) * self.per_minute / MINUTE_S
        self.level = min(float(self.per_minute), self.level + gained)
        self.filled_s = now_s

    def wait_s(self, cost: int) -> float:
        """Seconds until `cost` can be taken; 0 is now."""
        missing = min(cost, self.per_minute) - self.level
        # A little less than a token is owed to rounding.
        return 0.0 if missing < 1e-6 else missing * MINUTE_S / self.per_minute

    @property
    def full_s(self) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self.level) * MINUTE_S / self.per_minute


@dataclass(slots=True)
class _Account:
    """What a key has left. A bucket is None where there is no limit."""

    requests: Bucket | None
    tokens: Bucket | None
    num_running: int = 0
    reserved: dict[str, int] = field(default_factory=dict)


class RateLimits:
    """The accounts of all keys. `now_s` is a clock that never goes back."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._accounts: dict[str, _Account] = {}

    def enter(self, principal: Principal) -> None:
        """Count a request that begins to be answered. Raises RateLimitError."""
        account, limits = self._account(principal), principal.limits
        most = limits.concurrent_requests
        if most is not None and account.num_running >= most:
            raise RateLimitError(
                f"{account.num_running} requests of this key are being answered, as many as may.",
                retry_after_s=BUSY_RETRY_S,
            )
        if account.requests is not None:
            _take(account.requests, 1, what="requests")
        account.num_running += 1

    def leave(self, principal: Principal) -> None:
        """A request that had entered was answered."""
        self._account(principal).num_running -= 1

    def reserve(self, principal: Principal, costs: Mapping[str, int]) -> None:
        """Take the most that requests of the engine can cost, by their ids; all or nothing.

        Raises RateLimitError.
        """
        account = self._account(principal)
        if account.tokens is None:
            return
        _take(account.tokens, sum(costs.values()), what="tokens")
        account.reserved.update(costs)

    def settle(self, principal: Principal, request_id: str, *, used: int) -> None:
        """A request of the engine has ended: give back what it did not use."""
        account = self._account(principal)
        reserved = account.reserved.pop(request_id, None)
        if reserved is not None and account.tokens is not None:
            account.tokens.level += max(0, reserved - used)

    def headers(self, principal: Principal) -> Sequence[tuple[str, str]]:
        """OpenAI's `x-ratelimit-*` of what is limited."""
        account = self._account(principal)
        headers: list[tuple[str, str]] = []
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                headers += (
                    (f"x-ratelimit-limit-{name}", str(bucket.per_minute)),
                    (f"x-ratelimit-remaining-{name}", str(max(0, int(bucket.level + 1e-6)))),
                    (f"x-ratelimit-reset-{name}", _duration(bucket.full_s)),
                )
        return headers

    def _account(self, principal: Principal) -> _Account:
        """The account, its buckets filled."""
        now_s = self._now_s()
        account = self._accounts.get(principal.name)
        if account is None:
            limits = principal.limits
            account = self._accounts[principal.name] = _Account(
                _full(limits.requests_per_minute, now_s), _full(limits.tokens_per_minute, now_s)
            )
        for bucket in (account.requests, account.tokens):
            if bucket is not None:
                bucket.fill(now_s)
        return account


def _full(per_minute: int | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now_s, float(per_minute))


def _take(bucket: Bucket, cost: int, *, what: str) -> None:
    wait_s = bucket.wait_s(cost)
    if wait_s:
        raise RateLimitError(
            f"This key may use {bucket.per_minute} {what} per minute; this request needs {cost}, "
            f"and {max(0, int(bucket.level))} are left.",
            retry_after_s=wait_s,
        )
    bucket.level -= cost


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{round(1000 * seconds)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{round(rest)}s" if minutes else f"{round(rest, 3):g}s"


def most_tokens(request: Request, num_codes: int) -> int:
    """The most that can be computed for a request: what its usage will say at most."""
    if isinstance(request, ImageRequest):
        num_output = request.forced_codes.count(None) if request.forced_codes else num_codes
    else:
        num_output = request.max_tokens
    return len(request.token_ids) + num_output


def used_tokens(event: Finished | Failed) -> int:
    """What a request has cost; one that failed costs nothing."""
    if isinstance(event, Failed):
        return 0
    return event.usage.prompt_tokens + event.usage.output_tokens
