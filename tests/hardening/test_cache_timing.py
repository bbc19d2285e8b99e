"""How long an answer takes tells a client nothing of what others have asked.

CVE-2025-46570: the time to the first token showed whose prompt began like one that was computed
before, by whomever. Here caches are kept apart by key: what one has asked is new for another, and
takes as long as what nobody has asked. The same question of the one who asked it is the control.
"""

import http.client
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from PIL import Image

from tests.hardening.target import Target, png_url

ANN, BOB = "sk-the-key-of-ann", "sk-the-key-of-bob"
NUM_SAMPLES = 100
"""Of each class, in one round."""
MIN_P = 0.01
NUM_ROUNDS = 3
"""Chance alone shows a difference in one round of a hundred; what is there shows in each."""

WORDS = [f"{size} {color} {shape}" for size in ("large", "small") for color in ("red", "blue")
         for shape in ("circle", "square", "star", "picture", "shape")]  # fmt: skip
"""Always the same ones: the tokenizer remembers words, which saves microseconds, and here it is the
engine's caches that are measured."""
NUM_WORDS = 6
NUM_IMAGES = 4


class Client:
    """One key on one connection."""

    def __init__(self, target: Target, key: str) -> None:
        self._connection = http.client.HTTPConnection(
            target.host, target.port, timeout=target.patience_s
        )
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(self, messages: list[dict]) -> tuple[float, int]:
        """The seconds until the answer of one token, and how much of the prompt was cached."""
        body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": 1})
        started_s = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", body, self._headers)
        reply = self._connection.getresponse()
        text = reply.read()
        took_s = time.perf_counter() - started_s
        assert reply.status == 200, text
        return took_s, json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"]

    def close(self) -> None:
        self._connection.close()


def beginning(rng: random.Random, *, num_words: int) -> dict:
    """Words in an order that nobody else has: not even its first tokens are those of another."""
    number = "".join(rng.choices("0123456789abcdef", k=16))
    content = f"{number} {', '.join(rng.choices(WORDS, k=num_words))}"
    return {"role": "system", "content": content}


def images(rng: random.Random) -> list[dict]:
    """Noise, so that every file is as large as the others."""
    noise = (Image.frombytes("RGB", (32, 32), rng.randbytes(3072)) for _ in range(NUM_IMAGES))
    return [{"type": "image_url", "image_url": {"url": png_url(image)}} for image in noise]


Question = Callable[[], list[dict]]


def by_prefix(rng: random.Random) -> Question:
    """The very same prompt every time."""
    messages = [beginning(rng, num_words=NUM_WORDS), {"role": "user", "content": "Which?"}]
    return lambda: messages


def by_images(rng: random.Random) -> Question:
    """The same pictures behind other words every time, so that no prefix is known."""
    question = {"role": "user", "content": images(rng)}
    return lambda: [beginning(rng, num_words=1), question]


KINDS = {"prefix": by_prefix, "images": by_images}


def p_of_difference(one: list[float], other: list[float]) -> tuple[float, float]:
    """Mann and Whitney's U test: the two-sided p by the normal approximation, and z, which is
    negative where `one` is less."""
    ranked = sorted((value, name) for name, each in enumerate((one, other)) for value in each)
    rank_sum = sum(rank for rank, (_, name) in enumerate(ranked, 1) if name == 0)
    u = rank_sum - len(one) * (len(one) + 1) / 2
    mean = len(one) * len(other) / 2
    z = (u - mean) / math.sqrt(mean * (len(one) + len(other) + 1) / 6)
    return math.erfc(abs(z) / math.sqrt(2)), z


@pytest.fixture(scope="module")
def target(_make_target) -> Iterator[Target]:
    running = _make_target(
        api_keys=f"ann:{ANN},bob:{BOB}", headers={"authorization": f"Bearer {ANN}"}
    )
    yield running
    running.stop()


@pytest.fixture
def ann_and_bob(target: Target) -> Iterator[tuple[Client, Client]]:
    with ExitStack() as stack:
        ann, bob = (stack.enter_context(closing(Client(target, key))) for key in (ANN, BOB))
        yield ann, bob


def measure(ann: Client, bob: Client, make: Callable[[], Question]) -> dict[str, list[float]]:
    """What Ann has asked is asked again by her and by Bob, who asks something new as well; in
    turns, in any order."""
    took_s: dict[str, list[float]] = {"own": [], "another's": [], "new": []}
    rng = random.Random(0)
    for _ in range(NUM_SAMPLES):
        known, new, cached = make(), make(), {}
        ann.ask(known())
        asked = {"own": (ann, known), "another's": (bob, known), "new": (bob, new)}
        for name in rng.sample(sorted(asked), k=3):
            client, question = asked[name]
            seconds, cached[name] = client.ask(question())
            took_s[name].append(seconds)
        assert cached["another's"] == cached["new"] == 0
    return took_s


def image_hits(target: Target) -> float:
    (hits,) = (n for name, n in target.metrics().items() if ":mm_cache_hits_total{" in name)
    return hits


def test_u_finds_a_difference() -> None:
    rng = random.Random(0)
    slow, fast = ([rng.gauss(mean, 1.0) for _ in range(NUM_SAMPLES)] for mean in (0.6, 0.0))
    p, z = p_of_difference(slow, fast)
    assert p < MIN_P
    assert z > 0
    assert p_of_difference(fast, slow) == pytest.approx((p, -z))
    assert p_of_difference(fast, [rng.gauss(0.0, 1.0) for _ in range(NUM_SAMPLES)])[0] > MIN_P
    # Checked by hand: U is 1 of a mean of 4.5 and a deviation of 2.29.
    assert p_of_difference([1, 2, 4], [3, 5, 6])[1] == pytest.approx(-3.5 / math.sqrt(5.25))


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_asked_takes_as_long_as_what_nobody_asked(
    target: Target, ann_and_bob: tuple[Client, Client], kind: str
) -> None:
    ann, bob = ann_and_bob
    rng = random.Random(46570)

    def make() -> Question:
        return KINDS[kind](rng)

    found = []
    for _ in range(NUM_ROUNDS):
        before = image_hits(target)
        took_s = measure(ann, bob, make)
        own_hits = NUM_SAMPLES * NUM_IMAGES if kind == "images" else 0
        assert image_hits(target) == before + own_hits, "Bob meets an image of Ann's"
        p, z = p_of_difference(took_s["own"], took_s["new"])
        assert p < MIN_P, "no cache shows, not even one's own"
        assert z < 0, "what one has asked takes longer"
        p, z = p_of_difference(took_s["another's"], took_s["new"])
        found.append(f"p {p:.1e}, z {z:.1f}")
        if p > MIN_P:
            return
    raise AssertionError(f"what others asked shows: {found}")
