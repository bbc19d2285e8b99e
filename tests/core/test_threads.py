"""How many threads compute: what the system says, what is asked for, and what torch then has."""

import os
import threading
from pathlib import Path

import pytest
import torch

from janus_core.device import use_threads
from janus_core.engine.settings import EngineSettings
from janus_core.errors import ParameterError
from janus_core.pipeline import ImageOptions, Pipeline
from janus_core.threads import (
    choose_threads,
    count_cores,
    cpu_quota,
    lower_priority,
    parse_threads,
    usable_cores,
)


def system(root: Path, files: dict[str, str]) -> Path:
    """A directory with these files of a Linux system."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def topology(*siblings: str, name: str = "core_cpus_list") -> dict[str, str]:
    """CPU 0, 1, ... share a core with these."""
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": s for cpu, s in enumerate(siblings)}


FOUR_CPUS_TWO_CORES = topology("0,2", "1,3", "0,2", "1,3")


@pytest.fixture
def torch_threads():
    """Leaves torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus_core.threads._allowed_cpus", lambda: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("cpus", "cores"), [({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({3}, 1), ({0, 1, 2, 9}, 3)]
)
def test_hyper_threads_count_once(tmp_path: Path, cpus: set[int], cores: int) -> None:
    assert count_cores(cpus, root=system(tmp_path, FOUR_CPUS_TWO_CORES)) == cores


def test_older_systems_have_another_name_and_some_have_none(tmp_path: Path) -> None:
    assert count_cores({0, 1, 2}, root=tmp_path) == 3
    old = topology("0-1", "0-1", "2", name="thread_siblings_list")
    assert count_cores({0, 1, 2}, root=system(tmp_path, old)) == 2


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "350000 100000"}, 3.5),
        ({"sys/fs/cgroup/cpu.max": "350000 100000"}, 3.5),
        # The path from outside a container, of which only the root is there.
        ({"proc/self/cgroup": "0::/../pod/x", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        # The tightest of the own group and those above; a neighbour's is another's.
        (
            {
                "proc/self/cgroup": "0::/pod/own",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000",
                "sys/fs/cgroup/pod/own/cpu.max": "600000 100000",
                "sys/fs/cgroup/pod/other/cpu.max": "100000 100000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/pod",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "200000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "what is this"}, None),
    ],
)
def test_the_quota_of_a_group_and_of_those_above(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(root=system(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("quota", "cores"), [("max", 2), ("900000", 2), ("199999", 1), ("200000", 2), ("20000", 1)]
)
def test_whole_cpus_of_the_quota_and_at_least_one(tmp_path: Path, quota: str, cores: int) -> None:
    files = FOUR_CPUS_TWO_CORES | {"sys/fs/cgroup/cpu.max": f"{quota} 100000"}
    assert usable_cores({0, 1, 2, 3}, root=system(tmp_path, files)) == cores


def test_this_machine_has_what_it_hands_out() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.usefixtures("eight_cpus")
def test_the_setting_wins_then_the_variable_then_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = system(tmp_path, topology(*[f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" for cpu in range(8)]))
    assert choose_threads(0, root=root) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert choose_threads(0, root=root) == 3
    assert choose_threads(8, root=root) == 8
    for useless in ("", "0", "many", "-2"):
        monkeypatch.setenv("OMP_NUM_THREADS", useless)
        assert choose_threads(0, root=root) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert choose_threads(0, root=root) == 8
    with pytest.raises(ParameterError, match=r"threads is 9, but .* 8 CPUs") as refusal:
        choose_threads(9, root=root)
    assert refusal.value.param == "threads"


def test_how_settings_spell_it() -> None:
    assert [parse_threads(value) for value in ("auto", " AUTO ", "0", 0, "4", 4)] == [0] * 4 + [
        4
    ] * 2
    for wrong in ("-1", -1, "", "all", 1.5, None, True):
        with pytest.raises(ParameterError, match="threads must be auto or a number"):
            parse_threads(wrong)


@pytest.mark.usefixtures("eight_cpus", "torch_threads")
def test_torch_computes_with_as_many() -> None:
    assert use_threads(3) == 3 == torch.get_num_threads()


@pytest.mark.usefixtures("eight_cpus", "torch_threads")
def test_the_engine_computes_with_as_many(tiny_checkpoint: Path) -> None:
    """Whatever the renderer, whose single thread new threads inherit, and whoever calls."""
    settings = EngineSettings(kv_positions=256, max_sequences=4, threaded_rendering=True)
    pipeline = Pipeline.load(str(tiny_checkpoint), device="cpu", threads=3, settings=settings)
    assert pipeline.num_threads == 3
    seen, stepped = [], threading.Event()
    step = pipeline.engine.step

    def watched() -> list:
        seen.append(torch.get_num_threads())
        stepped.set()
        return step()

    pipeline.engine.step = watched
    service = pipeline.new_service(lambda _: None)
    torch.set_num_threads(1)
    service.start()
    (request,) = pipeline.image_requests("a star", ImageOptions(seed=1), request_id="i")
    service.submit(request)
    assert stepped.wait(20.0)
    service.stop()
    assert set(seen) == {3}


@pytest.mark.usefixtures("torch_threads")
def test_a_library_keeps_the_threads_it_has(tiny_checkpoint: Path) -> None:
    torch.set_num_threads(2)
    settings = EngineSettings(kv_positions=256, max_sequences=4)
    loaded = Pipeline.load(str(tiny_checkpoint), device="cpu", settings=settings)
    assert loaded.num_threads == 2 == torch.get_num_threads()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="niceness of threads is Linux's")
def test_priority_is_a_threads_own() -> None:
    nice: dict[str, int] = {}

    def look(name: str) -> None:
        nice[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def step_back() -> None:
        look("before")
        lower_priority(min(19, nice["before"] + 3))
        look("after")

    thread = threading.Thread(target=step_back)
    thread.start()
    thread.join()
    look("caller")
    assert nice["caller"] == nice["before"]
    assert nice["after"] == min(19, nice["before"] + 3)
