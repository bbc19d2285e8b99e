"""The scheduler's decisions about order and room, with all the time in the world."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_core.engine.request import (
    ImageRequest,
    TextRequest,
)
from janus_core.engine.sequence import Role
from janus_core.engine.settings import SLOT_UNIT
from tests.core.engine.house import NUM_CODES, SAMPLING, House, image, seen, text


def test_a_text_request_lives_prompt_and_tokens() -> None:
    house = House()
    house.add(text("t", 10, max_tokens=4))
    house.run()
    assert house.sampled_at["t"] == [1, 2, 3, 4]
    assert house.num_computed == 10 + 3


def test_a_pair_moves_together() -> None:
    house = House()
    house.add(image("i", 12))
    house.run()
    assert house.sampled_at["i"] == list(range(1, NUM_CODES + 1))
    assert house.num_computed == 2 * (12 + NUM_CODES - 1)


def test_a_pair_waits_for_its_slower_half() -> None:
    """The budget ends inside the conditional prompt, then inside the unconditional one."""
    house = House(max_sequences=4, step_token_budget=10)
    house.add(image("i", 13))
    plans = [house.step() for _ in range(3)]
    taken = [[(c.sequence.role, c.num_tokens) for c in plan.chunks] for plan in plans]
    assert taken[0] == [(Role.COND, 10)]
    assert taken[1] == [(Role.COND, 2), (Role.UNCOND, 8)]
    assert taken[2] == [(Role.COND, 1), (Role.UNCOND, 5)]
    assert not plans[0].sampling
    assert not plans[1].sampling
    assert plans[2].sampling == [house.states["i"]]


def test_n_pictures_of_a_prompt_prefill_it_once() -> None:
    house = House(step_token_budget=200)
    house.add(*[image(f"i{n}", 50) for n in range(4)])
    house.run()
    prefill = house.num_computed - 4 * 2 * (NUM_CODES - 1)
    # The first computes both prompts, the others the last token of both.
    assert prefill == 2 * 50 + 3 * 2
    assert [house.started_at[f"i{n}"] for n in range(4)] == [1, 2, 2, 2]


def test_the_unconditional_prefix_is_one_for_all_lengths_and_tenants() -> None:
    house = House(step_token_budget=400)
    house.add(image("i", 90, tenant="a"))
    house.run()
    for number, num_prompt in enumerate([20, 90, 37, 60]):
        house.add(image(f"j{number}", num_prompt, first=100 + 100 * number, tenant=f"b{number}"))
        plan = house.step()
        taken = {c.sequence.role: c.num_tokens for c in plan.chunks if c.num_tokens}
        assert taken == {Role.COND: num_prompt, Role.UNCOND: 1}
        house.run()


def test_a_negative_prompt_is_private() -> None:
    house = House(step_token_budget=400)
    negative = image("a", 30, tenant="a")
    ids = tuple(range(500, 530))
    fields = {"token_ids": ids, "uncond_token_ids": ids[::-1], "guidance": 5.0}
    for tenant in "ab":
        house.add(ImageRequest(id=tenant, sampling=SAMPLING, tenant=tenant, **fields))
        assert house.step().num_prefill_tokens == 2 * len(negative.token_ids)


def test_forced_codes_are_private() -> None:
    """The unconditional prompt is everybody's, but not what a client lets follow it."""
    forced = (*range(12), *[None] * 4)
    house = House(step_token_budget=400)
    house.add(image("a", 30, first=10, forced_codes=forced, tenant="a"))
    house.step()
    house.add(image("b", 30, first=50, forced_codes=forced, tenant="b"))
    assert house.step().num_prefill_tokens == 2 * (30 + 12)
    house.add(image("c", 30, first=90, forced_codes=forced, tenant="a"))
    assert house.step().num_prefill_tokens == (30 + 12) + 1


def test_the_next_turn_of_a_conversation_hits_the_answer() -> None:
    house = House()
    house.add(text("a", 20, max_tokens=8))
    house.run()
    said = house.states["a"].sequences[0].tokens
    turn = TextRequest(id="b", token_ids=(*said, 900, 901), sampling=SAMPLING, max_tokens=2)
    house.add(turn)
    house.step()
    # The last sampled token was never computed.
    assert house.states["b"].num_cached == len(said) - 1


def test_images_are_part_of_the_key() -> None:
    house = House(step_token_budget=200)
    house.add(text("a", 40, images=(seen(1),)))
    house.run()
    house.add(text("same", 40, images=(seen(1),)))
    house.run()
    house.add(text("other", 40, images=(seen(2),)))
    house.run()
    assert house.states["same"].num_cached == 39
    assert house.states["other"].num_cached == 0


def test_one_unseen_image_per_step() -> None:
    house = House(step_token_budget=200)
    two = (seen(1, first=1), seen(2, first=30))
    house.add(text("a", 60, images=two), text("b", 60, first=500, images=(seen(3),)))
    first, second, third = (house.step() for _ in range(3))
    assert [(e.state.id, e.index) for e in first.encodes] == [("a", 0)]
    # "a" stops before its second image, "b" before its first.
    assert [(c.state.id, c.num_tokens) for c in first.chunks] == [("a", 30), ("b", 1)]
    assert [(e.state.id, e.index) for e in second.encodes] == [("a", 1)]
    assert [(e.state.id, e.index) for e in third.encodes] == [("b", 0)]
    house.run()


def test_an_image_is_encoded_no_sooner_than_its_tokens_are_computed() -> None:
    """Behind a prefix that ends inside the image, in a step that has no token left."""
    house = House(step_token_budget=18)
    house.add(text("a", 30, images=(seen(1),)))
    house.step()
    house.scheduler.remove(house.states["a"], keep_prefix=True)
    house.embedded.clear()
    house.add(
        text("long", 18, first=500),
        text("again", 30, images=(seen(1),)),
        image("i", 12, first=700),
    )
    plan = house.step()
    assert house.states["again"].sequences[0].num_computed == 18
    assert {chunk.state.id for chunk in plan.chunks} == {"long", "i"}
    house.run()


def test_text_grows_beyond_its_first_reservation() -> None:
    house = House(text_growth_tokens=8)
    house.add(text("a", 10, max_tokens=300), text("b", 10, max_tokens=300, first=200))
    house.run()
    assert house.sampled_at["a"] == list(range(1, 301))
    assert house.scheduler.num_set_backs == 0


def test_the_newest_text_is_set_back_and_finishes_later() -> None:
    house = House(kv_positions=192, text_growth_tokens=8, image_reserve=0.0)
    house.add(*[text(f"t{n}", 10, max_tokens=100, first=100 * (n + 1)) for n in range(3)])
    house.run()
    assert house.scheduler.num_set_backs > 0
    assert house.sampled_at["t0"] == list(range(1, 101))
    assert all(house.states[f"t{n}"].num_output == 100 for n in range(3))


def test_a_picture_reserves_exactly_what_it_needs() -> None:
    """Its prompt and its codes but the last, which is never fed back: two units, not three."""
    house = House(kv_positions=128)
    house.add(image("i", 2 * SLOT_UNIT - NUM_CODES + 1))
    house.step()
    slots = [sequence.slot for sequence in house.states["i"].sequences]
    assert [slot.capacity for slot in slots] == [2 * SLOT_UNIT, 2 * SLOT_UNIT]
    house.run()


def test_pictures_are_never_set_back() -> None:
    house = House(kv_positions=192, text_growth_tokens=8)
    house.add(image("i", 12), text("t", 10, max_tokens=150))
    house.run()
    assert house.sampled_at["i"] == list(range(1, NUM_CODES + 1))


def test_a_burst_of_pictures_does_not_keep_a_question_waiting() -> None:
    house = House(kv_positions=1024)
    house.add(*[image(f"i{n}", 12, first=20 * n) for n in range(50)])
    for _ in range(5):
        house.step()
    house.add(text("t", 30, first=900))
    house.step()
    assert house.started_at["t"] == 6
    assert house.sampled_at["t"] == [6]
    assert sum(state.is_running for state in house.states.values() if state.is_image) >= 5
    house.run()


def test_a_flood_of_questions_does_not_stop_the_pictures() -> None:
    house = House(kv_positions=1024)
    count = 0

    def flood() -> None:
        nonlocal count
        if house.num_steps < 200:
            for _ in range(4):
                house.add(text(f"t{count}", 40, max_tokens=20, first=count % 800))
                count += 1

    flood()
    for _ in range(30):
        house.step()
        flood()
    house.add(image("i", 40))
    house.run(each=flood)
    # A quarter of the prefill tokens is the picture's, and its sequences decode in every step.
    assert house.started_at["i"] == 31
    assert house.ended_at["i"] <= 31 + 2 * 40 // 12 + NUM_CODES


def test_text_borrows_the_share_of_pictures_and_gives_it_back() -> None:
    house = House(max_sequences=8, step_token_budget=400)
    house.add(*[text(f"t{n}", 20, max_tokens=60, first=30 * n) for n in range(8)])
    plan = house.step()
    assert len(plan.sampling) == 8
    house.add(image("i", 12, first=500))
    plan = house.step()
    assert house.states["i"] in plan.sampling
    assert [n for n in range(8) if house.states[f"t{n}"].is_running] == [0, 1, 2, 3, 4, 5]
    house.run()
    assert house.scheduler.num_set_backs == 2
    assert all(house.states[f"t{n}"].num_output == 60 for n in range(8))


def test_text_gives_nothing_back_to_pictures_that_may_not_begin() -> None:
    """Only so many pictures are drawn at once: room would not help those behind them."""
    house = House(max_sequences=8, step_token_budget=400, max_images=1, image_reserve=0.5)
    house.add(*[text(f"t{n}", 10, max_tokens=200, first=30 * n + 10) for n in range(8)])
    house.step()
    house.add(*[image(f"i{n}", 12, first=500 + 20 * n) for n in range(3)])
    house.step()
    assert house.scheduler.num_set_backs == 2
    while "i0" not in house.ended_at:
        assert house.scheduler.num_set_backs == 2
        house.step()


def test_no_picture_begins_while_too_many_wait_for_their_pixels() -> None:
    house = House(max_sequences=8, step_token_budget=400)
    house.add(image("i", 12), text("t", 10, first=300))
    plan = house.scheduler.plan(num_rendering=8)
    assert [state.id for state in plan.started] == ["t"]
    assert house.scheduler.can_go_on(num_rendering=8)
    house.scheduler.remove(house.states["t"], keep_prefix=False)
    assert not house.scheduler.can_go_on(num_rendering=8)
    assert house.scheduler.can_go_on(num_rendering=7)
    plan = house.scheduler.plan(num_rendering=7)
    assert [state.id for state in plan.started] == ["i"]


def test_pictures_leave_the_share_of_text_alone() -> None:
    house = House(max_sequences=8, step_token_budget=400)
    house.add(*[image(f"i{n}", 12, first=30 * n) for n in range(8)])
    house.step()
    house.step()
    assert sum(state.is_running for state in house.states.values()) == 3


def test_questions_are_answered_in_order() -> None:
    house = House(max_sequences=4)
    house.add(*[text(f"t{n}", 20, first=30 * n) for n in range(12)])
    house.run()
    starts = [house.started_at[f"t{n}"] for n in range(12)]
    assert starts == sorted(starts)


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    """Pictures that come one after the other leave no hole large enough for a long prompt."""
    house = House(kv_positions=256, patience_steps=40, max_sequences=8)
    count = 0

    def more() -> None:
        nonlocal count
        if house.num_steps % 7 == 0 and house.num_steps < 600:
            house.add(image(f"i{count}", 12, first=count))
            count += 1

    more()
    house.step()
    house.add(text("long", 180, first=600, max_tokens=2))
    house.run(each=more)
    assert house.started_at["long"] < 1 + 40 + 4 * NUM_CODES


@pytest.mark.parametrize("stage", range(8))
def test_removing_at_any_stage_frees_everything(stage: int) -> None:
    house = House(max_sequences=8, step_token_budget=14)
    house.add(text("t", 30), image("i", 20), image("j", 20), text("u", 30, images=(seen(1),)))
    for _ in range(stage):
        house.step()
    for request_id, state in house.states.items():
        if request_id not in house.ended_at:
            house.scheduler.remove(state, keep_prefix=stage % 2 == 0)
            house.scheduler.check_integrity()
    assert house.pool.num_used == 0
    assert not house.scheduler.has_work
    assert house.pool.num_cached == 0 or stage % 2 == 0 or house.ended_at


some_text = st.builds(
    lambda num_prompt, max_tokens, first: ("text", num_prompt, max_tokens, first),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([10, 11, 200]),
)
some_image = st.builds(
    lambda num_prompt, guided, first: ("image", num_prompt, guided, first),
    st.integers(2, 40),
    st.booleans(),
    st.sampled_from([10, 200]),
)
arrivals = st.lists(
    st.tuples(st.integers(0, 6), st.one_of(some_text, some_image), st.booleans()), max_size=25
)


@settings(max_examples=80, deadline=None)
@given(
    arrivals,
    st.sampled_from([160, 256, 1024]),
    st.sampled_from([10, 40]),
    st.sampled_from([1, 16]),
    st.booleans(),
)
def test_all_requests_end_whatever_arrives(
    script: list, kv_positions: int, budget: int, growth: int, prefix_cache: bool
) -> None:
    """Arrivals and departures in any order: every plan is sound, and everybody is served."""
    house = House(
        kv_positions=kv_positions,
        max_sequences=8,
        step_token_budget=budget,
        text_growth_tokens=growth,
        prefix_cache=prefix_cache,
        patience_steps=20,
    )
    gone = set()
    for number, (pause, (kind, size, detail, first), leaves) in enumerate(script):
        request_id = f"r{number}"
        if kind == "text":
            house.add(text(request_id, size, max_tokens=detail, first=first))
        else:
            house.add(image(request_id, size, guided=detail, first=first))
        for _ in range(pause):
            house.step()
        if leaves and request_id not in house.ended_at:
            house.scheduler.remove(house.states[request_id], keep_prefix=True)
            gone.add(request_id)
    house.run()
    assert house.ended_at.keys() | gone == house.states.keys()
