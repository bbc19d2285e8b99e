"""The memory of an engine on its device: taken when it is built or woken, gone while it sleeps.

Owns how much is allocated and what stands in for it; knows no requests. Invariant: what stands in
has the shapes and no memory, so that nothing can be computed with it by mistake.
"""

from collections.abc import Callable

import torch

from janus_core.config import ModelConfig
from janus_core.engine.execution import Executor
from janus_core.engine.graph_choice import new_step_graphs
from janus_core.engine.graphs import StepGraphs
from janus_core.engine.render import Renderer
from janus_core.engine.runner import Runner
from janus_core.engine.settings import SLOT_UNIT, EngineSettings
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool


def allocate(
    model: JanusModel, *, settings: EngineSettings, num_positions: int
) -> tuple[KvPool, StepGraphs | None]:
    """The KV pool for slots in `num_positions`, and the graphs that write to it."""
    # The slot behind the others is nobody's: padding is written there.
    kv = KvPool.allocate(
        model.config, num_positions + SLOT_UNIT, device=model.device, dtype=model.kv_dtype
    )
    return kv, new_step_graphs(model, kv, settings, spare_start=num_positions)


class EngineMemory:
    """What an engine has on its device, to be given back and taken again while no request is
    live."""

    def __init__(
        self,
        runner: Runner,
        executor: Executor,
        renderer: Renderer,
        take_memory: Callable[[JanusModel], tuple[KvPool, StepGraphs | None]],
    ) -> None:
        self._runner = runner
        self._executor = executor
        self._renderer = renderer
        self._take_memory = take_memory

    def give_back(self, config: ModelConfig) -> None:
        """Let go of the network, the pool and the graphs."""
        self._executor.land()
        meta = torch.device("meta")
        model = JanusModel.skeleton(config, device=meta, dtype=torch.float32)
        kv = KvPool.allocate(config, SLOT_UNIT, device=meta, dtype=torch.float32)
        self._attach(model, kv, None)

    def take(self, model: JanusModel) -> None:
        """Go on with `model`, which computes what the one before did."""
        kv, graphs = self._take_memory(model)
        self._attach(model, kv, graphs)

    def _attach(self, model: JanusModel, kv: KvPool, graphs: StepGraphs | None) -> None:
        self._runner.attach(model, kv=kv, graphs=graphs)
        self._renderer.attach(model)
