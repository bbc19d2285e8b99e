"""Fair shares between tenants, in integers: who is next, who is charged, and who is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.engine.house import NUM_CODES, House, image, text


def flood(house: House, tenant: str, num: int, *, first: int = 10) -> None:
    house.add(*[image(f"{tenant}{n}", 12, first=first, tenant=tenant) for n in range(num)])


def starts(house: House, prefix: str) -> list[int]:
    return sorted(at for name, at in house.started_at.items() if name.startswith(prefix))


def test_one_picture_does_not_wait_behind_a_hundred_of_another_tenant() -> None:
    house = House(max_images=1)
    flood(house, "a", 100)
    for _ in range(5):
        house.step()
    house.add(image("b", 12, first=300, tenant="b"))
    while "b" not in house.started_at:
        house.step()
    # The one that was being drawn, and one more at most.
    assert len(starts(house, "a")) <= 2
    assert house.started_at["b"] <= 2 * (NUM_CODES + 1) + 1


def test_a_flood_of_answers_neither() -> None:
    house = House(max_sequences=4, image_reserve=0.0)
    house.add(*[text(f"a{n}", 10, max_tokens=20, tenant="a", first=5 * n) for n in range(100)])
    for _ in range(5):
        house.step()
    house.add(text("b", 10, first=900, tenant="b"))
    while "b" not in house.started_at:
        house.step()
    assert len(starts(house, "a")) <= 4 + 4


def test_nothing_is_left_idle_for_fairness() -> None:
    """Whoever is alone has everything, whatever it had before."""
    alone, beside = House(max_images=4), House(max_images=4)
    for house, num in ((alone, 0), (beside, 3)):
        flood(house, "b", num, first=300)
        house.run()
        house.num_steps = 0
        flood(house, "a", 20)
        house.run()
    assert alone.num_steps == beside.num_steps


def test_tenants_that_both_want_more_get_equally_much() -> None:
    """Long prompts of one, short ones of the other: row-steps count, not requests."""
    house = House(max_images=2, step_token_budget=256, prefix_cache=False)
    house.add(*[image(f"a{n}", 100, first=10 + n, tenant="a") for n in range(60)])
    house.add(*[image(f"b{n}", 12, first=500 + n, tenant="b") for n in range(60)])
    queue = house.scheduler._images.waiting
    largest = 2 * (100 + NUM_CODES - 1)
    while min(len(starts(house, "a")), len(starts(house, "b"))) < 10:
        house.step()
        assert abs(queue.charged("a") - queue.charged("b")) <= 2 * largest
    assert len(starts(house, "b")) > 3 * len(starts(house, "a"))
    house.run()


def test_three_tenants_take_turns() -> None:
    house = House(max_images=1)
    for tenant in "abc":
        flood(house, tenant, 5)
    house.run(max_steps=5000)
    order = sorted(house.started_at, key=house.started_at.get)
    turns = [{name[0] for name in order[n : n + 3]} for n in range(0, 15, 3)]
    assert turns == [set("abc")] * 5


def test_nobody_saves_up_while_away() -> None:
    """`b` was away while `a` drew forty; then both want to, and get every other turn."""
    house = House(max_images=1)
    house.add(image("b-before", 12, first=300, tenant="b"))
    flood(house, "a", 40)
    while len(starts(house, "a")) < 30:
        house.step()
    seen = len(starts(house, "a"))
    house.add(*[image(f"b{n}", 12, first=300, tenant="b") for n in range(5)])
    while any(f"b{n}" not in house.started_at for n in range(5)):
        house.step()
    assert 4 <= len(starts(house, "a")) - seen <= 6
    house.run(max_steps=5000)


def test_it_does_not_help_to_come_and_go() -> None:
    """Whoever has one request at a time has no more turns than whoever has them all wait."""
    house = House(max_images=1)
    flood(house, "a", 30)
    house.step()
    for n in range(6):
        house.add(image(f"b{n}", 12, first=300, tenant="b"))
        while f"b{n}" not in house.ended_at:
            house.step()
    assert len(starts(house, "a")) >= 6
    house.run(max_steps=5000)


def test_a_request_that_was_set_back_keeps_its_place_and_is_charged_once() -> None:
    house = House(kv_positions=192, text_growth_tokens=8, image_reserve=0.0)
    prompts = [
        text(f"{tenant}{n}", 10, max_tokens=90, first=100 * n + 10, tenant=tenant)
        for n in range(4)
        for tenant in "ab"
    ]
    house.add(*prompts)
    queue = house.scheduler._texts.waiting
    set_back: set[str] = set()

    def look() -> None:
        for tenant in "ab":
            line = [state for state in queue if state.tenant == tenant]
            assert line == sorted(line, key=lambda state: state.order)
            set_back.update(state.id for state in line if state.num_output)

    house.run(each=look)
    assert set_back
    # Prompts and answers; the last token of each is never computed.
    assert {state.num_charged for state in house.states.values()} == {10 + 90 - 1}


def test_what_was_not_drawn_is_not_charged() -> None:
    house = House(max_images=1)
    flood(house, "a", 2)
    for _ in range(4):
        house.step()
    house.scheduler.remove(house.states["a0"], keep_prefix=False)
    queue = house.scheduler._images.waiting
    assert queue.charged("a") == 2 * (12 + 4)


def test_among_requests_of_one_tenant_the_first_is_first() -> None:
    house = House(max_images=2)
    house.add(*[image(f"i{n}", 12 + n % 3, first=40 * n, tenant="a") for n in range(9)])
    house.run()
    order = [house.started_at[f"i{n}"] for n in range(9)]
    assert order == sorted(order)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(2, 40), st.integers(0, 12)), max_size=40)
)
def test_the_order_is_the_one_that_was_said(script: list[tuple[str, int, int]]) -> None:
    """Pictures start in the order of the outlook, if nobody comes or goes meanwhile."""
    house = House(max_images=1, step_token_budget=256)
    for number, (tenant, num_prompt, pause) in enumerate(script):
        house.add(image(f"i{number}", num_prompt, first=20 * number, tenant=tenant))
        for _ in range(pause):
            house.step()
    outlook = house.scheduler.outlook(0.0, num_codes=NUM_CODES, num_rendering=0)
    said = [drawing.request_id for drawing in outlook.drawings]
    house.run(max_steps=5000)
    assert sorted(said, key=house.started_at.get) == said


@pytest.mark.parametrize("num_others", [0, 1, 5])
def test_with_as_many_tenants_as_requests_it_is_first_come_first_served(num_others: int) -> None:
    house = House(max_images=1)
    names = [f"t{n}" for n in range(num_others + 1)]
    house.add(*[image(name, 12, tenant=name, first=20 * n) for n, name in enumerate(names)])
    house.run()
    assert sorted(names, key=house.started_at.get) == names
