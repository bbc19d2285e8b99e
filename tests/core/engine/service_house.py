"""An engine's thread whose events are collected."""

import threading
from collections.abc import Callable

from janus_core.engine.request import SamplingParams
from janus_core.engine.service import EngineService
from tests.core.engine.support import Log, Requests

LONG = SamplingParams(seed=0, logit_bias=((40, 100.0),))  # never ends by itself
TIMEOUT_S = 20.0


class ServiceHouse:
    """A service whose events are collected under a lock."""

    def __init__(self, make: Requests, **settings) -> None:
        self.log = Log()
        self.threads: set[str] = set()
        self.changed = threading.Condition()
        self.engine = make.engine(**settings)
        self.service = EngineService(self.engine, self.sink)

    def sink(self, events) -> None:
        with self.changed:
            self.threads.add(threading.current_thread().name)
            self.log.add(list(events))
            self.changed.notify_all()

    def wait(self, predicate: Callable[[Log], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: predicate(self.log), TIMEOUT_S), "timed out"

    def has(self, request_id: str, kind: type) -> Callable[[Log], bool]:
        return lambda log: request_id in log.outcomes and bool(log[request_id].of_type(kind))
