"""`janus bench serve`: the definitions on hand-made answers, and the load on a real server."""

import asyncio
import itertools
from pathlib import Path

import pytest

from janus_core.errors import ParameterError
from server.bench.client import Client, Exchange, Moment
from server.bench.drive import DriveOptions, drive
from server.bench.load import LoadOptions, arrivals, jobs, workload_named
from server.bench.measures import Record, is_good, parse_goals, record_of, spread, summarise
from tests.serving import ServerInThread


def _chunk(at_s: float, text: str) -> Moment:
    return Moment(at_s, {"choices": [{"delta": {"content": text}}]})


def _event(at_s: float, kind: str, **more: object) -> Moment:
    return Moment(at_s, {"type": f"image_generation.{kind}", **more})


# ---- definitions ------------------------------------------------------------------------------


def test_an_answer_is_measured_between_its_words() -> None:
    """The first chunk names the role and carries no words, the last one carries the usage."""
    usage = Moment(9.0, {"choices": [], "usage": {"completion_tokens": 5}})
    moments = [_chunk(1.5, ""), _chunk(2.0, "a"), _chunk(2.5, "b"), _chunk(4.0, "c"), usage]
    record = record_of("chat", Exchange(1.0, 9.5, 200, moments))
    assert record.first_s == pytest.approx(1.0)
    assert record.end_s == pytest.approx(3.0)
    assert record.gaps_s == pytest.approx((0.5, 1.5))
    assert record.tpot_s == pytest.approx(2.0 / 4)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    usage = Moment(3.0, {"choices": [], "usage": {"completion_tokens": 1}})
    record = record_of("vqa", Exchange(0.0, 3.0, 200, [_chunk(2.0, "a"), usage]))
    assert record.tpot_s is None
    assert is_good(record, {"tpot": 0.001, "ttft": 2.5})
    assert not is_good(record, {"ttft": 1.5})


def test_a_picture_is_measured_by_its_previews_and_its_last_byte() -> None:
    done = _event(9.0, "completed", usage={"output_tokens": 576})
    moments = [_event(3.0, "partial_image"), _event(5.0, "partial_image"), done]
    record = record_of("image", Exchange(1.0, 9.5, 200, moments))
    assert record.first_s == pytest.approx(2.0)
    assert record.gaps_s == pytest.approx((2.0,))
    assert record.end_s == pytest.approx(8.0)
    assert (record.num_images, record.num_tokens, record.tpot_s) == (1, 576, None)


def test_a_picture_that_never_came_is_a_failure() -> None:
    record = record_of("image", Exchange(1.0, 9.5, 200, [_event(3.0, "partial_image")]))
    assert record.error


def test_failures_count_among_those_sent_and_miss_every_goal() -> None:
    good = Record("chat", 0.0, first_s=0.1, end_s=1.0, gaps_s=(0.3, 0.6), num_tokens=3)
    slow = Record("image", 0.0, first_s=1.0, end_s=6.0, num_tokens=576, num_images=1)
    lost = Record("image", 0.0, error="status 503")
    goals = parse_goals(["ttft:500", "image_e2el:5000"])
    figures = summarise([good, slow, lost], duration_s=10.0, goals=goals)
    assert (figures["sent"], figures["completed"], figures["failed"]) == (3, 2, 1)
    assert figures["errors"] == ["status 503"]
    assert figures["goodput"] == pytest.approx(0.1)
    assert figures["slo_attainment"] == pytest.approx(1 / 3)
    assert figures["images_per_s"] == pytest.approx(0.1)
    assert figures["image_token_throughput"] == pytest.approx(57.6)
    assert figures["output_token_throughput"] == pytest.approx(0.3)
    assert figures["concurrency"] == pytest.approx(0.7)
    assert figures["itl_s"]["mean"] == pytest.approx(0.45)
    assert figures["image_latency_s"]["p50"] == pytest.approx(6.0)
    assert figures["preview_gap_s"] is None


def test_percentiles_are_linear_between_neighbours() -> None:
    figures = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert figures == pytest.approx(
        {"mean": 3.0, "p50": 3.0, "p90": 4.6, "p95": 4.8, "p99": 4.96, "max": 5.0}
    )
    assert spread([]) is None


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:-1", "speed:5", "tpot:nan"])
def test_goals_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(ParameterError, match="is not a goal"):
        parse_goals([word])


# ---- load ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_requests_and_another_one_others() -> None:
    def first(seed: int, **options: object) -> list:
        return list(itertools.islice(jobs(LoadOptions(seed=seed, **options)), 12))

    assert first(3) == first(3)
    assert first(3) != first(4)
    assert {job.kind for job in first(3)} == {"chat", "vqa", "image"}
    assert {job.kind for job in first(3, workload="images")} == {"image"}
    images = [str(job.body["messages"]) for job in first(3, workload="vqa", num_scenes=0)]
    assert len({text.partition("base64,")[2][:400] for text in images}) == 12


def test_arrivals_are_a_poisson_process() -> None:
    """The mean gap is one over the rate, and its spread as large as the mean (within 4 sigma of
    2,000 gaps)."""
    times = list(itertools.islice(arrivals(5.0, seed=1), 2000))
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.2, rel=0.09)
    assert deviation == pytest.approx(mean, rel=0.13)
    assert times == list(itertools.islice(arrivals(5.0, seed=1), 2000))


def test_a_workload_that_is_none_is_refused() -> None:
    with pytest.raises(ParameterError, match="chat, vqa, images, mix"):
        workload_named("video")


# ---- a real server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path):
    with ServerInThread(model=str(tiny_checkpoint)) as server:
        yield server.url


@pytest.mark.parametrize("rate", [None, 200.0])
def test_every_kind_of_request_is_answered(url: str, rate: float | None) -> None:
    load = LoadOptions(seed=3, max_tokens=6, ignore_eos=True, previews=2)
    options = DriveOptions(num_requests=12, rate_per_s=rate, concurrency=4, num_warmups=1)
    done: list[Record] = []
    run = asyncio.run(drive(Client(url), load, options, on_done=done.append))
    assert len(run.records) == len(done) == 12
    assert {record.error for record in run.records} == {""}
    kinds = [job.kind for job in itertools.islice(jobs(load), 12)]
    assert [record.kind for record in run.records] == kinds
    for record in run.records:
        if record.kind == "image":
            # Previews may be dropped when the renderer is behind; codes are counted all the same.
            assert (record.num_images, record.num_tokens) == (1, 16)
        else:
            assert record.num_tokens == 6
        assert 0 <= (record.first_s or 0) <= record.end_s <= run.duration_s
    figures = summarise(
        run.records, duration_s=run.duration_s, goals={"e2el": 60, "image_e2el": 60}
    )
    assert figures["slo_attainment"] == 1.0
    assert figures["concurrency"] <= 4.0 or rate is not None


def test_no_more_are_in_flight_than_allowed(url: str) -> None:
    in_flight, most = 0, 0

    class Counting(Client):
        async def send(self, path, body=None):
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            exchange = await super().send(path, body)
            in_flight -= 1
            return exchange

    load = LoadOptions(workload="chat", max_tokens=3, ignore_eos=True)
    options = DriveOptions(num_requests=9, concurrency=3, num_warmups=0)
    asyncio.run(drive(Counting(url), load, options))
    assert most == 3


def test_refusals_are_told_with_their_reason(url: str) -> None:
    async def send() -> Exchange:
        return await Client(url).send("/v1/images/generations", {"prompt": "x", "seed": -1})

    exchange = asyncio.run(send())
    assert exchange.status == 400
    assert "seed" in exchange.error
    assert record_of("image", exchange).error == exchange.error


def test_nobody_there_is_an_error_and_no_exception() -> None:
    exchange = asyncio.run(Client("http://127.0.0.1:9").send("/version"))
    assert "Error" in exchange.error


@pytest.mark.parametrize("url", ["https://example.org", "ftp://x", "http://"])
def test_addresses_it_cannot_use_are_refused(url: str) -> None:
    with pytest.raises(ParameterError, match="is not an address"):
        Client(url)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_as_clients_write_it(url: str, suffix: str) -> None:
    assert asyncio.run(Client(url + suffix).send("/version")).status == 200
