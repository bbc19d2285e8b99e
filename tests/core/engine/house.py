"""A scheduler with the runner's part played by hand: milliseconds, no tensors."""

import itertools
import math
from collections.abc import Callable

import numpy as np

from janus_core.config import BackboneConfig, ModelConfig, VisionConfig, VqConfig
from janus_core.engine.pace import Pace
from janus_core.engine.plan import StepPlan
from janus_core.engine.request import (
    ImageInput,
    ImageRequest,
    Request,
    SamplingParams,
    TextRequest,
)
from janus_core.engine.scheduler import Scheduler
from janus_core.engine.sequence import RequestState, new_state
from janus_core.engine.settings import EngineSettings
from janus_core.engine.slots import SlotPool
from janus_core.engine.step_model import StepLoad, StepModel

NUM_CODES = 16
BOS, PAD, BEGIN = 1, 2, 3
CONFIG = ModelConfig(
    backbone=BackboneConfig(
        width=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        mlp_width=8,
        vocab_size=1000,
        max_positions=4096,
    ),
    vision=VisionConfig(
        image_size=8, patch_size=4, width=8, num_layers=1, num_heads=1, mlp_ratio=2.0
    ),
    vq=VqConfig(
        codebook_size=50,
        code_dim=4,
        base_channels=8,
        channel_multiplier=(1,),
        num_res_blocks=1,
        latent_channels=8,
        grid=4,
        head_width=8,
    ),
)
SAMPLING = SamplingParams(seed=0)
UNHURRIED = {"chat_slowdown": math.inf, "token_time_s": math.inf, "image_time_s": math.inf}
"""Promises that every step keeps, so that only integers decide."""


def no_time(_: StepLoad) -> float:
    """The duration of a step where only integers decide."""
    return 0.0


class House:
    """A scheduler and a runner that computes nothing but notes what it was asked to.

    `step_s` plays the clock: how long a step takes, which the scheduler learns step by step.
    """

    def __init__(
        self,
        *,
        kv_positions: int = 4096,
        step_s: Callable[[StepLoad], float] = no_time,
        **fields,
    ) -> None:
        fields = {"max_sequences": 16, "step_token_budget": 64, **UNHURRIED, **fields}
        self.settings = EngineSettings(kv_positions=kv_positions, **fields)
        self.model = StepModel()
        self.step_s = step_s
        self.pace = Pace(self.settings, self.model, num_codes=NUM_CODES)
        self.pool = SlotPool(kv_positions, prefix_cache=self.settings.prefix_cache)
        self.embedded: set[tuple[str, bytes]] = set()
        self.scheduler = Scheduler(
            self.settings,
            self.pool,
            is_embedded=lambda t, image: (t, image.digest) in self.embedded,
            pace=self.pace,
        )
        self.states: dict[str, RequestState] = {}
        self.started_at: dict[str, int] = {}
        self.sampled_at: dict[str, list[int]] = {}
        self.ended_at: dict[str, int] = {}
        self.num_steps = 0
        self.num_computed = 0

    def add(self, *requests: Request) -> None:
        for request in requests:
            state = new_state(
                request,
                config=CONFIG,
                public_ids=frozenset((BOS, PAD, BEGIN)),
                order=len(self.states),
                now_s=0.0,
            )
            self.states[request.id] = state
            self.scheduler.add(state)

    def step(self) -> StepPlan:
        plan = self.scheduler.plan()
        self.num_steps += 1
        self.check(plan)
        for state in plan.started:
            self.started_at.setdefault(state.id, self.num_steps)
        for encode in plan.encodes:
            request = encode.state.request
            self.embedded.add((request.tenant, request.images[encode.index].digest))
            encode.state.embedded.add(encode.index)
        self.scheduler.commit(plan.chunks)
        self.model.observe(plan.load, self.step_s(plan.load))
        self.num_computed += sum(chunk.num_tokens for chunk in plan.chunks)
        for state in plan.sampling:
            state.append(state.num_output if not state.is_image else 1000 + state.num_output)
            state.append_forced(1000)
            self.sampled_at.setdefault(state.id, []).append(self.num_steps)
            request = state.request
            total = NUM_CODES if state.is_image else request.max_tokens
            if state.num_output == total:
                self.ended_at[state.id] = self.num_steps
                self.scheduler.remove(state, keep_prefix=True)
        self.scheduler.check_integrity()
        return plan

    def check(self, plan: StepPlan) -> None:
        """What every plan must satisfy."""
        assert sum(c.num_tokens for c in plan.chunks) <= self.settings.step_token_budget
        assert plan.num_prefill_tokens + sum(
            len(state.sequences) for state in plan.sampling[: plan.num_decoding]
        ) == sum(c.num_tokens for c in plan.chunks)
        assert plan.load.rows == sum(
            len(state.sequences) for state in plan.sampling[: plan.num_decoding]
        )
        assert all(chunk.num_tokens == 1 for chunk in plan.chunks[: plan.load.rows])
        assert plan.load.context == sum(c.sequence.num_computed + c.num_tokens for c in plan.chunks)
        sequences = [c.sequence for c in plan.chunks]
        assert len(set(sequences)) == len(sequences), "a sequence was planned twice"
        assert len(set(plan.sampling)) == len(plan.sampling), "a request samples twice"
        reached = {c.sequence: c.sequence.num_computed + c.num_tokens for c in plan.chunks}
        for chunk in plan.chunks:
            assert chunk.num_tokens > 0
            assert reached[chunk.sequence] <= chunk.sequence.slot.capacity
            whole = reached[chunk.sequence] == len(chunk.sequence.tokens)
            assert whole == (chunk.state in plan.sampling), "a last token without a sample"
        for state in plan.sampling:
            assert all(reached[s] == len(s.tokens) for s in state.sequences)
            assert len({len(s.tokens) for s in state.sequences}) == 1
        runs = [encode for encode in plan.encodes if encode.runs_tower]
        assert len(runs) <= self.settings.encodes_per_step
        computing = set(plan.states())
        assert all(encode.state in computing for encode in plan.encodes), "encoded for nothing"

    def run(self, *, max_steps: int = 3000, each: Callable[[], None] = lambda: None) -> None:
        while self.scheduler.has_work:
            self.step()
            each()
            assert self.num_steps < max_steps, "the requests do not come to an end"
        assert self.pool.num_used == 0


PROMISES = {"chat_slowdown": 1.75, "token_time_s": 0.0, "image_time_s": math.inf}


def cpu(load: StepLoad) -> float:
    """A 1B model on a small CPU: 55 ms a step, 8 a row, 10 a prompt token, 10 us a position."""
    step_s = 0.055 + 0.008 * load.rows + 0.010 * load.prefill_tokens + 1e-5 * load.context
    return step_s + 1.6 * load.tower_runs


class Clock(House):
    """Notes when answers went on, in played seconds."""

    def __init__(self, step_s: Callable[[StepLoad], float], **fields) -> None:
        super().__init__(
            step_s=step_s, **{"step_token_budget": 256, "max_sequences": 32, **PROMISES, **fields}
        )
        self.now_s = 0.0
        self.times: dict[str, list[float]] = {}

    def tick(self) -> None:
        plan = self.step()
        self.now_s += self.step_s(plan.load)
        for state in plan.sampling:
            self.times.setdefault(state.id, []).append(self.now_s)

    def gaps_s(self, name: str, *, since_s: float = 0.0) -> list[float]:
        times = [time_s for time_s in self.times[name] if time_s >= since_s]
        return [after - before for before, after in itertools.pairwise(times)]


def text(request_id: str, num_prompt: int = 10, *, max_tokens: int = 4, first: int = 10, **fields):
    ids = (BOS, *range(first, first + num_prompt - 1))
    return TextRequest(
        id=request_id, token_ids=ids, sampling=SAMPLING, max_tokens=max_tokens, **fields
    )


def image(request_id: str, num_prompt: int = 12, *, first: int = 10, guided: bool = True, **fields):
    ids = (BOS, *range(first, first + num_prompt - 2), BEGIN)
    uncond = (BOS, *[PAD] * (num_prompt - 2), BEGIN)
    return ImageRequest(
        id=request_id,
        token_ids=ids,
        uncond_token_ids=uncond if guided else None,
        guidance=5.0 if guided else 1.0,
        sampling=SAMPLING,
        **fields,
    )


def seen(digest: int, *, first: int = 1, num_tokens: int = 20) -> ImageInput:
    return ImageInput(bytes([digest]) * 8, np.zeros((3, 8, 8), np.float32), first, num_tokens)
