"""Row 13: what one client gets does not depend on who else is there."""

import random
import threading
from contextlib import suppress

import httpx2
import pytest

from tests.hardening.injection import Faults, ask, ask_all, drawing, image_question, question
from tests.hardening.target import Target

NUM_PROMPTS = 50
POISON = {900: "error", 901: "oom", 902: "nan"}


@pytest.fixture(scope="module")
def house(_make_target, tmp_path_factory):
    faults = Faults(tmp_path_factory.mktemp("faults") / "rules")
    target: Target = _make_target(env=faults.env)
    yield target, faults
    target.stop()


def prompts() -> list[tuple]:
    """Greedy and drawn, with pictures and without, whole and streamed, and pictures."""
    rng = random.Random(0)
    made = []
    for seed in range(NUM_PROMPTS):
        stream, temperature = rng.random() < 0.5, rng.choice([0, 0.8])
        if seed % 5 == 4:
            made.append(drawing(seed, stream=stream))
        elif seed % 5 == 3:
            made.append(
                image_question(seed, side_px=30 + seed, stream=stream, temperature=temperature)
            )
        else:
            words = rng.choice(["What is it?", "a large red circle", "to the left of a star"])
            made.append(
                question(
                    seed, words=words, stream=stream, temperature=temperature, max_tokens=20 + seed
                )
            )
    return made


class Companions:
    """Others who come, leave in the middle, meet faults and finish, for as long as it takes."""

    def __init__(self, target: Target, *, num: int) -> None:
        self._target = target
        self._over = threading.Event()
        self.num_left = self.num_failed = self.num_done = 0
        self._threads = [
            threading.Thread(target=self._live, args=(random.Random(i),)) for i in range(num)
        ]

    def __enter__(self) -> "Companions":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _live(self, rng: random.Random) -> None:
        while not self._over.is_set():
            fate = rng.choice(["leave", "fail", "finish"])
            if fate == "leave":
                self._leave(rng)
            elif fate == "fail":
                seen = ask(self._target, question(rng.choice(list(POISON)), stream=True))
                self.num_failed += seen.error is not None
            else:
                seen = ask(self._target, rng.choice(prompts()))
                self.num_done += seen.error is None

    def _leave(self, rng: random.Random) -> None:
        path, body = question(rng.randrange(100), stream=True, max_tokens=500)
        num_events = rng.randrange(30)
        with (
            suppress(httpx2.HTTPError),
            self._target.client() as client,
            client.stream("POST", path, json=body) as reply,
        ):
            for number, _ in enumerate(reply.iter_lines()):
                if number >= num_events:
                    break
        self.num_left += 1


def test_fifty_prompts_alone_and_with_random_companions(house) -> None:
    target, faults = house
    alone = [ask(target, prompt) for prompt in prompts()]
    assert all(seen.error is None and not seen.broke for seen in alone)
    # Not a server that says the same to everybody.
    assert len({seen.text for seen in alone}) > NUM_PROMPTS // 2
    faults.arm(*[f"seed:{seed}:{kind}" for seed, kind in POISON.items()])
    with Companions(target, num=7) as companions:
        together = []
        for first in range(0, NUM_PROMPTS, 5):
            together += ask_all(target, prompts()[first : first + 5])
    faults.disarm()
    ended = [(a, b) for a, b in zip(alone, together, strict=True) if not (b.error or b.broke)]
    differing = [(a.text, b.text) for a, b in ended if a.text != b.text]
    assert not differing, "another answer in company"
    assert all(seen.error is None and not seen.broke for seen in together)
    assert companions.num_left > 3
    assert companions.num_failed > 3
    assert companions.num_done > 3
    target.check_p0()


CACHES = ("prefix_cache", "mm_cache")


def hits(target: Target) -> dict[str, float]:
    """Of each cache; of the prefixes of pictures' unconditional prompts, which are nobody's, apart
    from them."""
    found = {cache: total(target, f"{cache}_hits_total") for cache in CACHES}
    found["prefix_cache"] -= total(target, "uncond_prefix_hits_total")
    return found


def total(target: Target, name: str) -> float:
    return sum(value for key, value in target.metrics().items() if key.startswith(f"janus:{name}"))


def late_image(words: str) -> tuple:
    """A question whose image comes behind the words: with other words its embeddings are looked
    up, because no prefix holds it."""
    path, body = image_question(2, side_px=77)
    image, _ = body["messages"][0]["content"]
    content = [{"type": "text", "text": words}, image]
    return path, body | {"messages": [{"role": "user", "content": content}]}


def test_what_one_tenant_has_asked_speeds_up_nothing_of_another(start_target) -> None:
    """A hit would tell the one what the other asks (CVE-2025-46570)."""
    keys = {name: f"sk-row-thirteen-of-{name}" for name in ("ann", "bob", "cat")}
    target: Target = start_target(
        api_keys=",".join(f"{name}:{key}" for name, key in keys.items()),
        headers={"authorization": f"Bearer {keys['cat']}"},
    )
    words = "what ann wants to know, and nobody else " * 4
    said, gained = [], []
    for name, number in (("ann", 1), ("ann", 2), ("bob", 1), ("bob", 2)):
        asked = [question(1, words=words), late_image(f"at look {number}"), drawing(3)]
        before = hits(target)
        own = {"authorization": f"Bearer {keys[name]}"}
        seen = [ask(target, request, headers=own) for request in asked]
        assert all(each.error is None for each in seen)
        said.append([each.text for each in seen])
        gained.append({cache: now - before[cache] for cache, now in hits(target).items()})
    of_ann, again_ann, of_bob, again_bob = gained
    # What Ann finds at first is the beginning of her own prompts, and so must be what Bob does.
    assert of_bob == of_ann
    # There is something to hit, and every cache is counted.
    assert all(again_ann[cache] > of_ann[cache] for cache in CACHES)
    assert again_bob == again_ann
    assert said[:2] == said[2:]
