"""The engine: requests in, events out, one step at a time.

Owns the live requests and ties scheduler, runner, text outputs and renderer together; knows no
HTTP, no JSON and no threads. Invariant: every submitted request gets exactly one terminal event,
and when none is live no slot is in use.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from janus_core.engine.admission import Bounds
from janus_core.engine.constraint import Matcher
from janus_core.engine.events import Event, Failed, FinishReason, ImageProgress, Preview, Started
from janus_core.engine.execution import Executor
from janus_core.engine.faults import Fault, error_of, fault_of
from janus_core.engine.forecast import Estimate, Horizon, Outlook
from janus_core.engine.memory import EngineMemory, allocate
from janus_core.engine.pace import Pace
from janus_core.engine.plan import Sample, StepPlan
from janus_core.engine.probe import probe_plan
from janus_core.engine.render import Rendered, RenderJob, new_renderer
from janus_core.engine.report import finished_of, stats_of, summary_of
from janus_core.engine.request import ImageRequest, Request, TextRequest
from janus_core.engine.runner import Runner
from janus_core.engine.scheduler import Scheduler
from janus_core.engine.sequence import RequestState, new_state
from janus_core.engine.settings import EngineSettings
from janus_core.engine.slots import SlotPool
from janus_core.engine.stats import EngineStats
from janus_core.engine.step_model import StepLoad, StepModel
from janus_core.engine.text_output import TextOutput
from janus_core.engine.vision_cache import VisionCache
from janus_core.errors import EngineDeadError, JanusError, QueueFullError
from janus_core.models.janus import JanusModel
from janus_core.ops.streams import ComputeThread
from janus_core.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Engine:
    """Deterministic and single-threaded: call `submit`, `cancel` and `step` from one thread.

    `on_rendered` is called whenever a picture is ready, from the renderer's thread if it has one;
    `on_started` with the ids of requests that got slots, before they are computed.
    """

    def __init__(self, model: JanusModel, tokenizer: Tokenizer, settings: EngineSettings) -> None:
        self._config = config = model.config
        num_positions = settings.pool_positions(config, bytes_per_value=model.kv_dtype.itemsize)
        self.settings = settings
        self.on_rendered: Callable[[], None] = lambda: None
        self.on_started: Callable[[Sequence[str]], None] = lambda _: None
        self._tokenizer = tokenizer
        public_ids = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.begin_of_image_id)
        self._public_ids = frozenset(public_ids)
        self.context_limit = min(config.backbone.max_positions, num_positions)
        self._bounds = Bounds(config, self.context_limit, num_positions)
        self._pool = SlotPool(num_positions, prefix_cache=settings.prefix_cache)
        self._vision_cache = VisionCache(settings.vision_cache_bytes)
        self._step_model = StepModel()
        self._pace = Pace(settings, self._step_model, num_codes=config.vq.num_codes)
        self._scheduler = Scheduler(
            settings,
            self._pool,
            is_embedded=lambda tenant, image: (tenant, image.digest) in self._vision_cache,
            pace=self._pace,
        )
        num_codes, room = config.vq.num_codes, self._scheduler.room_for_images
        self._horizon = Horizon(
            self._pace, self._step_model, num_codes=num_codes, room_for_images=room
        )
        take_memory = partial(allocate, settings=settings, num_positions=num_positions)
        kv, graphs = take_memory(model)
        self._runner = Runner(
            model, tokenizer, kv=kv, vision_cache=self._vision_cache, graphs=graphs
        )
        self.attention_backend = self._runner.attention_backend
        probe = partial(probe_plan, tokenizer.bos_id, spare_start=num_positions)
        self._executor = Executor(self._runner, probe=probe)
        # Read before the renderer's thread exists: what a thread sets is the default of new ones.
        self._thread = ComputeThread.like_this(model.device)
        self.num_threads = self._thread.num_threads
        self._renderer = new_renderer(model, settings, on_rendered=lambda: self.on_rendered())
        self.memory = EngineMemory(self._runner, self._executor, self._renderer, take_memory)
        # Live requests by id, in exactly one of: the scheduler, `_rendering`.
        self._states: dict[str, RequestState] = {}
        self._rendering: dict[str, RequestState] = {}
        self._outputs: dict[str, TextOutput] = {}
        self._events: list[Event] = []
        self._num_submitted = 0
        self._num_dropped_previews = 0

    def bind_thread(self) -> None:
        """Give the calling thread, which will call `step`, the device, and as many compute threads
        as torch had when the engine was built: it could start with the renderer's single one."""
        self._thread.bind()

    # ---- requests in ----------------------------------------------------------------------------

    def validate(self, request: Request) -> Matcher | None:
        """Refuse a request that could never run: ContextLengthError, ParameterError. Returns what
        `accept` needs of it, so that nothing is compiled within a step. Thread-safe."""
        self._bounds.check(request)
        if isinstance(request, TextRequest):
            return self._runner.constraints.new_matcher(request)
        return None

    def submit(self, request: Request) -> None:
        """Queue a request. Raises what `validate` raises, and QueueFullError."""
        matcher = self.validate(request)
        is_image = isinstance(request, ImageRequest)
        num_waiting = self._scheduler.num_waiting_of(is_image=is_image)
        if num_waiting >= self.settings.max_waiting:
            raise QueueFullError(
                f"{num_waiting} of its kind are waiting already, as many as may.", retry_after_s=1.0
            )
        self.accept(request, matcher)

    def accept(self, request: Request, matcher: Matcher | None) -> None:
        """Queue a request with what `validate` returned, however many wait: what was promised a
        place must get one, even if text that was set back has filled the queue since."""
        assert request.id not in self._states, f"request {request.id} is live already"
        state = new_state(
            request,
            config=self._config,
            public_ids=self._public_ids,
            order=self._num_submitted,
            now_s=time.monotonic(),
        )
        self._num_submitted += 1
        if isinstance(request, TextRequest):
            detokenizer = self._tokenizer.stream()
            eos_id = self._tokenizer.eos_id
            self._outputs[request.id] = TextOutput(request, detokenizer, eos_id=eos_id)
        self._states[request.id] = state
        if matcher is not None:
            self._runner.hold(state, matcher)
        self._scheduler.add(state)
        self._executor.replan()

    def cancel(self, request_id: str) -> None:
        """End a request and free its slots; without effect if it has ended already."""
        state = self._states.get(request_id)
        if state is not None:
            self._finish(state, "cancelled")

    def fail_all(self, error: JanusError) -> list[Event]:
        """End all requests with `error`; returns what `step` would have."""
        for state in list(self._states.values()):
            self._fail(state, error)
        events, self._events = self._events, []
        return events

    # ---- events out -----------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step could still produce an event."""
        return bool(self._states or self._events)

    @property
    def beat_s(self) -> float:
        """When the pass at hand began, on the monotonic clock. Thread-safe."""
        return self._executor.beat_s

    @property
    def render_beat_s(self) -> float | None:
        """As `beat_s`, for the renderer; None while it has nothing to do. Thread-safe."""
        return self._renderer.beat_s

    @property
    def is_rendering_only(self) -> bool:
        """Whether nothing but the renderer can produce the next event."""
        can_go_on = self._scheduler.can_go_on(num_rendering=len(self._rendering))
        return not can_go_on and not self._events

    def step(self) -> list[Event]:
        """Advance every running request by one token at most, and report all that happened since
        the last call."""
        plan = self._plan()
        self._start(plan)
        if plan.chunks:
            samples = self._run(plan)
            self._commit(plan, samples)
        self._collect_rendered()
        num_images = self._scheduler.num_images + len(self._rendering)
        self._horizon.look(self._outlook, num_images=num_images)
        events, self._events = self._events, []
        return events

    def estimate(
        self, request: Request | str, *, num_images: int = 1, num_ahead: int | None = None
    ) -> Estimate | None:
        """When a picture will be there: a live one, or the last of `num_images` that came now,
        behind `num_ahead` or all that wait. None where nothing tells, and for text. Thread-safe."""
        if isinstance(request, str):
            return self._horizon.of(request)
        return self._horizon.of_request(request, num_images=num_images, num_ahead=num_ahead)

    def estimate_place(self, *, is_image: bool, num_ahead: int) -> Estimate | None:
        """See `Horizon.of_place`. Thread-safe."""
        return self._horizon.of_place(num_ahead, is_image=is_image)

    @property
    def has_waiting_text(self) -> bool:
        return self._scheduler.has_waiting_text

    @property
    def next_start_s(self) -> float | None:
        """See `Horizon.next_start_s`. Thread-safe."""
        return self._horizon.next_start_s()

    def _outlook(self, time_s: float) -> Outlook:
        num_codes, num_rendering = self._config.vq.num_codes, len(self._rendering)
        return self._scheduler.outlook(time_s, num_codes=num_codes, num_rendering=num_rendering)

    def stats(self) -> EngineStats:
        """The numbers of this moment. Thread-safe, if not from one instant."""
        return stats_of(
            self._scheduler,
            self._executor,
            pool=self._pool,
            vision=self._vision_cache,
            pace=self._pace,
            image=self._horizon.of_more(1),
            num_rendering=len(self._rendering),
            num_dropped_previews=self._num_dropped_previews,
        )

    def check_integrity(self) -> None:
        """Assert that slots, queues and live requests agree; for tests and idle moments."""
        self._scheduler.check_integrity()
        num_scheduled = self._scheduler.num_waiting + self._scheduler.num_running
        assert len(self._states) == num_scheduled + len(self._rendering), "a request is lost"
        assert self._outputs.keys() <= self._states.keys(), "an answer without a request"

    def reset_caches(self) -> None:
        """Forget the prefixes and embeddings kept for later; answers only take longer."""
        self._pool.forget_cached()
        self._vision_cache.clear()

    def close(self) -> None:
        """Stop the renderer. Live requests get no further events."""
        self._renderer.close()

    # ---- below: the parts of a step -------------------------------------------------------------

    def _plan(self) -> StepPlan:
        """What the device computes already, or a new plan."""
        plan = self._executor.pending()
        if plan is None:
            return self._scheduler.plan(num_rendering=len(self._rendering))
        self._scheduler.num_steps += 1
        self._pace.settle(StepLoad(), plan.load, images_want=True)
        return plan

    def _start(self, plan: StepPlan) -> None:
        """Report the requests that left the queue; those set back report only once."""
        self.on_started([state.id for state in plan.started])
        now_s = time.monotonic()
        num_texts = sum(not state.is_image for state in plan.started)
        self._horizon.pace_of_text.note(now_s, num_texts, is_waiting=self.has_waiting_text)
        for state in plan.started:
            if state.started_s is None:
                state.started_s = now_s
                self._events.append(Started(state.id, now_s - state.submitted_s))

    def _run(self, plan: StepPlan) -> list[Sample]:
        """Compute the plan, and fail the requests that cannot be computed."""
        load = plan.load
        outcome = self._executor.run(plan, num_running=self._scheduler.num_running)
        if outcome.is_usual:
            self._step_model.observe(load, outcome.done.duration_s)
        for state, error in outcome.failures:
            self._fail(state, error)
        self._events.append(outcome.done)
        return outcome.samples

    def _commit(self, plan: StepPlan, samples: list[Sample]) -> None:
        """Make the step's results part of the requests."""
        self._scheduler.commit(plan.chunks)
        for encode in plan.encodes:
            encode.state.embedded.add(encode.index)
        for sample in samples:
            try:
                self._accept(sample)
            except Exception:
                # What is done with a token is its request's alone, as the token is.
                logger.exception("Request %s failed after a step.", sample.state.id)
                if sample.state.id in self._states:
                    self._fail(sample.state, error_of(Fault.REQUEST))

    def _accept(self, sample: Sample) -> None:
        if sample.error is not None:
            self._fail(sample.state, sample.error)
        elif sample.state.is_image:
            self._accept_code(sample)
        else:
            self._accept_word(sample)

    def _accept_word(self, sample: Sample) -> None:
        state = sample.state
        if state.embedded:
            # The prompt is computed; its images are not needed again unless it is set back.
            state.embedded.clear()
            self._runner.drop_embeddings(state)
        self._append(state, sample.token.token_id)
        delta, reason = self._outputs[state.id].push(sample.token)
        if delta is not None:
            self._events.append(delta)
        if reason is not None:
            self._finish(state, reason)

    def _accept_code(self, sample: Sample) -> None:
        state, code = sample.state, sample.token
        request, vq, vocab_size = state.request, self._config.vq, self._config.backbone.vocab_size
        assert isinstance(request, ImageRequest)
        num_before = state.num_output
        if code.code_logprob is not None:
            state.code_logprobs[num_before] = code.code_logprob
        self._append(state, vocab_size + code.token_id)
        state.append_forced(vocab_size)
        num_codes = state.num_output
        previews = [i for i, at in enumerate(request.preview_at) if num_before < at <= num_codes]
        if request.progress and num_codes // vq.grid > num_before // vq.grid:
            estimate = self._horizon.of(state.id)
            remaining_s = None if estimate is None else estimate.remaining_s
            progress = ImageProgress(state.id, num_codes, vq.num_codes, remaining_s)
            self._events.append(progress)
        if num_codes == vq.num_codes:
            # The slots are free before the pixels exist.
            self._scheduler.remove(state, keep_prefix=True)
            self._rendering[state.id] = state
            self._renderer.submit(self._render_job(state))
        elif previews:
            job = self._render_job(state, preview_index=previews[-1])
            self._num_dropped_previews += not self._renderer.submit(job)

    def _append(self, state: RequestState, token_id: int) -> None:
        state.append(token_id)
        state.ended_s = time.monotonic()
        if state.first_s is None:
            state.first_s = state.ended_s

    def _collect_rendered(self) -> None:
        """Report the pictures the renderer has finished, unless their requests have ended."""
        for rendered in self._renderer.poll():
            job = rendered.job
            state = self._states.get(job.request_id)
            if state is None:
                continue
            if rendered.pixels is None:
                logger.error("Rendering request %s failed.", state.id, exc_info=rendered.error)
                fault = Fault.REQUEST if rendered.error is None else fault_of(rendered.error)
                if fault is Fault.DEVICE:
                    raise EngineDeadError("The device is lost while a picture was decoded.")
                self._fail(state, error_of(fault))
            elif job.preview_index is not None:
                self._events.append(
                    Preview(state.id, job.preview_index, len(job.codes), rendered.pixels)
                )
            else:
                self._finish(state, "stop", rendered)

    def _finish(
        self, state: RequestState, reason: FinishReason, rendered: Rendered | None = None
    ) -> None:
        """Emit the terminal event of a request that ended well, and forget it."""
        self._forget(state, keep_prefix=True)
        if rendered is not None:
            self._horizon.rendered(rendered.duration_s)
        finished = finished_of(state, reason, rendered)
        self._events.append(finished)
        logger.info("%s", summary_of(state, finished))

    def _fail(self, state: RequestState, error: JanusError) -> None:
        """Emit the terminal event of a request that did not end well; what it computed is not
        trusted."""
        self._forget(state, keep_prefix=False)
        self._events.append(Failed(state.id, error))

    def _forget(self, state: RequestState, *, keep_prefix: bool) -> None:
        if self._rendering.pop(state.id, None) is None:
            self._scheduler.remove(state, keep_prefix=keep_prefix)
        self._runner.forget(state)
        self._executor.replan()
        self._outputs.pop(state.id, None)
        del self._states[state.id]

    def _render_job(self, state: RequestState, *, preview_index: int | None = None) -> RenderJob:
        vocab_size = self._config.backbone.vocab_size
        return RenderJob(
            state.id,
            codes=tuple(token_id - vocab_size for token_id in state.output_ids),
            is_wanted=lambda: state.id in self._states,
            preview_index=preview_index,
        )
