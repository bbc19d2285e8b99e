"""What a server's metrics must say at the end of a soak, by the books of its clients.

Owns the translation from a ledger to queries and their values; asks nobody. Where a client left, it
cannot know how its request ended: then the sum over all possible ends is compared, which is as
exact. Invariant: each number of the ledger is part of at least one query.
"""

from collections import Counter

from benchmarks.soak_clients import LEFT_TOKENS, Ledger


def totals(ledger: Ledger) -> dict[str, float]:
    """The value of each query."""
    return _http(ledger) | _refusals(ledger) | _pictures(ledger) | _answers(ledger)


def _http(ledger: Ledger) -> dict[str, float]:
    values: dict[str, float] = {}
    for handler in {handler for handler, _ in ledger.http}:
        by_status = Counter({s: num for (name, s), num in ledger.http.items() if name == handler})
        label = f'handler="{handler}"'
        values[f"sum(http_requests_total{{{label}}})"] = by_status.total()
        # Status 0: the answer was complete, or cut short.
        values[f'sum(http_requests_total{{{label},status=~"200|499"}})'] = (
            by_status[200] + by_status[0]
        )
        for status, num in by_status.items():
            if status and (status != 200 or not by_status[0]):
                values[f'sum(http_requests_total{{{label},status="{status}"}})'] = num
    return values


def _refusals(ledger: Ledger) -> dict[str, float]:
    values: dict[str, float] = {
        f'sum(janus:requests_rejected_total{{reason="{reason}"}})': num
        for reason, num in ledger.rejections.items()
    }
    by_image = [num for reason, num in ledger.rejections.items() if "image" in reason]
    values["sum(janus:requests_rejected_total)"] = ledger.rejections.total()
    values["sum(janus:media_rejections_total)"] = sum(by_image)
    return values


def _pictures(ledger: Ledger) -> dict[str, float]:
    return {
        'sum(janus:image_fetch_seconds_count{outcome="ok"})': ledger.num_fetched,
        "sum(janus:image_fetch_seconds_count)": ledger.num_fetched,
        "janus:images_generated_total": ledger.num_pictures,
        'janus:images_total{finish_reason="stop"}': ledger.num_pictures,
        "sum(janus:images_total)": ledger.num_pictures,
        "sum(janus:image_fetch_blocked_total)": 0,
        "janus:image_generation_seconds_count": ledger.num_pictures,
        "janus:image_encode_seconds_count": ledger.num_pictures,
        'sum(janus:request_success_total{task="image"})': ledger.success["image", "stop"],
        'janus:requests_cancelled_total{task="image"}': 0,
        'janus:prompt_tokens_total{task="image"}': ledger.prompt_tokens["image"],
        'janus:generation_tokens_total{task="image"}': ledger.output_tokens["image"],
    }


def _answers(ledger: Ledger) -> dict[str, float]:
    cancelled = 'janus:requests_cancelled_total{task="chat"}'
    success = 'janus:request_success_total{task="chat",finished_reason="%s"}'
    kept = 'janus:generation_tokens_total{task="chat"} - janus:cancelled_tokens_total{task="chat"}'
    # Who left too late was sent all it asked for, and counts as any other success.
    num_late = f"({ledger.num_left} - {cancelled})"
    return {
        success % "stop": ledger.success["chat", "stop"],
        f"sum({success % 'length'}) + sum({cancelled})": (
            ledger.success["chat", "length"] + ledger.num_left
        ),
        f"{kept} - {LEFT_TOKENS} * {num_late}": ledger.output_tokens["chat"],
        'janus:prompt_tokens_total{task="chat"}': (
            ledger.prompt_tokens["chat"] + ledger.prompt_tokens["left"]
        ),
        "sum(janus:request_failure_total)": 0,
        "janus:failed_steps_total": 0,
    }
