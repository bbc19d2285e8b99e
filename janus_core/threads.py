"""How many threads compute, and which step back for them.

Owns the number of cores this process may use, read from Linux (affinity mask, topology, cgroups),
and the priority of a thread. Knows no tensors: what computes with that many threads asks here.
Invariant: at least one core, and never more than the machine hands out.

Compute threads meet at a barrier several hundred times a step and spin there, so the slowest one
sets the pace. One that shares a core with a hyper-thread of its own kind, or that a quota stops in
the middle of a period, keeps all others waiting.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from janus_core.errors import ParameterError

ROOT = Path("/")

AUTO = "auto"


def parse_threads(value: object) -> int:
    """A number of threads as settings spell it: 0 and `auto` are both 0. Raises ParameterError."""
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return 0
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        raise ParameterError(
            f"threads must be auto or a number from 0, but is {value}.", param="threads"
        )
    return number


def choose_threads(threads: int, *, root: Path = ROOT) -> int:
    """The number of compute threads that a setting asks for, at least 1.

    0 means as many as OMP_NUM_THREADS says if it is set, else one for each core the process may
    use. Raises ParameterError for more than the CPUs it may run on: they would wait for each other.
    """
    num_cpus = len(_allowed_cpus())
    if threads > num_cpus:
        raise ParameterError(
            f"threads is {threads}, but this process may run on {num_cpus} CPUs.", param="threads"
        )
    if threads:
        return threads
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted):
        return min(int(wanted), num_cpus)
    return usable_cores(root=root)


def usable_cores(cpus: Iterable[int] | None = None, *, root: Path = ROOT) -> int:
    """Physical cores this process may use: those under `cpus` (by default the affinity mask), each
    once, and no more than whole CPUs of the cgroup's quota. `root` is where the system's files
    are."""
    cores = count_cores(_allowed_cpus() if cpus is None else cpus, root=root)
    quota = cpu_quota(root=root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def count_cores(cpus: Iterable[int], *, root: Path = ROOT) -> int:
    """Cores under the logical CPUs; one whose siblings are not told is a core of its own."""
    topology = root / "sys/devices/system/cpu"
    cores = set()
    for cpu in cpus:
        siblings = None
        for name in ("core_cpus_list", "thread_siblings_list"):  # the second one before Linux 5.3
            siblings = siblings or _read(topology / f"cpu{cpu}" / "topology" / name)
        cores.add(siblings or str(cpu))
    return max(1, len(cores))


def cpu_quota(*, root: Path = ROOT) -> float | None:
    """CPUs' worth of time that cgroups of either version leave to this process, None without a
    limit: the least of its own group and all groups above."""
    quotas: list[float | None] = []
    for line in (_read(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += map(_quota_v2, _groups(root / "sys/fs/cgroup", path))
        elif "cpu" in controllers.split(","):
            for mount in {"cpu", controllers}:
                quotas += map(_quota_v1, _groups(root / "sys/fs/cgroup" / mount, path))
    return min((quota for quota in quotas if quota is not None), default=None)


def lower_priority(niceness: int) -> None:
    """Add to the calling thread's niceness, where the system knows one for a thread."""
    if sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it: what the thread does matters more
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _allowed_cpus() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """The directories of a group and of all above it. Inside a container the path can be the one
    outside, of which only the root is there."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts) + 1):
        yield mount.joinpath(*parts[:depth])


def _quota_v2(group: Path) -> float | None:
    """`cpu.max` is `150000 100000`, microseconds per period, or `max 100000`."""
    quota, _, period = (_read(group / "cpu.max") or "").partition(" ")
    return _ratio(quota, period)


def _quota_v1(group: Path) -> float | None:
    """A quota of -1 is none."""
    quota, period = (_read(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    if not quota.isdecimal() or not period.isdecimal() or not int(quota) or not int(period):
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str | None:
    """The stripped text of a file, None if there is none to read."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
