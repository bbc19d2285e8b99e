"""What becomes of a request whose deadline has passed.

Owns the words for it, and where it is counted; knows no clock. Whoever watches the deadline asks
here: `Admission` while a request is prepared, its handle once the engine has it. Invariant: a
missed deadline is answered and counted in one way, whoever noticed.
"""

from janus_core.errors import JanusError, QueuedTooLongError, RanTooLongError
from server.metrics import Metrics
from server.record import RequestRecord


def missed(
    record: RequestRecord, metrics: Metrics, *, has_begun: bool, retry_after_s: float
) -> JanusError:
    """Count it, and return the error to answer with. A request has begun once the engine computes
    anything for it."""
    record.reasons.append("deadline")
    metrics.count("deadline_misses", "running" if has_begun else "queued")
    allowed_s = record.deadline_s - record.received_s
    if has_begun:
        return RanTooLongError(f"The answer was not done after {allowed_s:g} s, its deadline.")
    return QueuedTooLongError(
        f"The request had not begun after {allowed_s:g} s, its deadline.",
        retry_after_s=retry_after_s,
    )
