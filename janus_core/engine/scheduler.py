"""Which sequences compute which tokens in the next step.

Owns the waiting and the running requests and the order among them; knows integers only, neither
tensors nor text. Invariant: the sequences of a request are admitted, planned and freed together,
and every running request has a slot for each of its sequences.

There are no phases: every sequence has `num_computed` tokens in its slot and `len(tokens)` known,
and each step moves the first towards the second within a token budget: answers that only miss
their last token (decoding) first, then prompts of text, then pictures, as far as the `Pace` lets
them. A picture that must wait keeps its slots and what they hold.
"""

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from janus_core.engine.forecast import Outlook
from janus_core.engine.kinds import LOOK_AHEAD, Kind, drawing_of, plan_image_prefill
from janus_core.engine.pace import Pace
from janus_core.engine.plan import Chunk, Encode, StepPlan, decode_load
from janus_core.engine.request import ImageInput, TextRequest
from janus_core.engine.sequence import RequestState
from janus_core.engine.settings import EngineSettings
from janus_core.engine.slots import BLOCK_TOKENS, Copy, Prefix, SlotPool
from janus_core.engine.step_model import StepLoad


class Scheduler:
    """`is_embedded(tenant, image)` tells whether embeddings need no run of the vision tower; `pace`
    how much work a step takes up beside answers."""

    def __init__(
        self,
        settings: EngineSettings,
        pool: SlotPool,
        *,
        is_embedded: Callable[[str, ImageInput], bool],
        pace: Pace,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._pace = pace
        self._is_embedded = is_embedded
        self._images = Kind(settings, pool, reserve_of_others=settings.text_reserve)
        # What text borrows can be taken back, because text can be set back.
        self._texts = Kind(
            settings, pool, reserve_of_others=settings.image_reserve, lender=self._images
        )
        self.num_steps = 0
        self._images_first = self._holds_images = False
        self.num_set_backs = 0
        self.prefix_queries_tokens = 0
        self.prefix_hits_tokens = 0
        self.uncond_prefix_hits_tokens = 0

    # ---- the engine's side ----------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._texts.waiting) + len(self._images.waiting)

    def num_waiting_of(self, *, is_image: bool) -> int:
        """Of one kind."""
        return len((self._images if is_image else self._texts).waiting)

    @property
    def num_running(self) -> int:
        return len(self._texts.running) + len(self._images.running)

    @property
    def num_images(self) -> int:
        """Pictures that are not drawn."""
        return len(self._images.waiting) + len(self._images.running)

    @property
    def answers_load(self) -> StepLoad:
        """What the next token of every answer costs."""
        answers = [decode_load(state) for state in self._texts.running if state.is_decoding]
        return sum(answers, start=StepLoad())

    @property
    def has_waiting_text(self) -> bool:
        return bool(self._texts.waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.num_waiting or self.num_running)

    def add(self, state: RequestState) -> None:
        self._kind_of(state).waiting.add(state)

    def remove(self, state: RequestState, *, keep_prefix: bool) -> None:
        """Take a request out, wherever it is. What is computed of it stays as a cached prefix if
        asked."""
        kind = self._kind_of(state)
        if not state.is_running:
            kind.waiting.remove(state)
            return
        kind.running.remove(state)
        kind.waiting.refund(state)
        # The next turn of a conversation repeats the answer; nobody repeats the codes of a picture.
        keep = state.num_prompt if state.is_image else len(state.sequences[0].tokens)
        self._free(state, keep=keep if keep_prefix else 0)

    def can_go_on(self, *, num_rendering: int) -> bool:
        """Whether a plan would not be empty while so many pictures wait for their pixels."""
        may_begin = self._images.waiting and num_rendering < self._settings.max_sequences
        return bool(self.num_running or self._texts.waiting or may_begin)

    def plan(self, *, num_rendering: int = 0) -> StepPlan:
        """The next step. Slots are assigned at once; counts move in `commit`.

        No picture begins while too many that are drawn wait for their pixels: they would pile up
        where pixels take longer than codes.
        """
        plan = StepPlan()
        self._holds_images = num_rendering >= self._settings.max_sequences
        self.num_steps += 1
        self._take_back()
        self._make_room(plan)
        # What is admitted below has prompt left to compute, even if only its last token.
        decoding = {state for state in self._running() if state.is_decoding}
        budget = self._settings.tokens_per_step - sum(len(state.sequences) for state in decoding)
        for state in self._texts.running:
            if state in decoding:
                plan.add_decode(state)
        answers = plan.load
        self._admit(plan, budget)
        budget -= self._plan_prompts(plan, budget, decoding)
        self._plan_pictures(plan, budget, decoding, answers)
        return plan

    def commit(self, chunks: Iterable[Chunk]) -> None:
        """The tokens of these chunks are in their slots."""
        for chunk in chunks:
            slot = chunk.sequence.slot
            assert slot is not None, "a computed sequence has a slot"
            slot.num_computed += chunk.num_tokens
            if not chunk.state.is_image:
                self._texts.waiting.charge(chunk.state)

    def check_integrity(self) -> None:
        """Assert the invariants; for tests and idle moments."""
        self._pool.check_integrity()
        slots = [sequence.slot for state in self._running() for sequence in state.sequences]
        assert all(slot is not None and slot.in_use for slot in slots), "a sequence lost its slot"
        assert len({id(slot) for slot in slots}) == len(slots), "two sequences share a slot"
        assert self._pool.num_used == sum(slot.capacity for slot in slots if slot is not None), (
            "a slot in use belongs to nobody"
        )
        for kind in (self._texts, self._images):
            kind.waiting.check_integrity()

    def max_images(self, like: RequestState) -> int:
        """How many pictures such as this one the pace allows at once."""
        context = (like.num_prompt + like.max_positions) // 2
        return self._pace.max_images(pair=len(like.sequences), context=context)

    def outlook(self, time_s: float, *, num_codes: int, num_rendering: int) -> Outlook:
        """The pictures that are not done, in the order in which they are taken."""
        states = (*self._images.running, *self._images.waiting)
        return Outlook(
            time_s=time_s,
            answers=self.answers_load,
            drawings=tuple(drawing_of(state, num_codes=num_codes) for state in states),
            num_running=len(self._images.running),
            num_at_once=self._images_at_once(states[0]) if states else 1,
            num_rendering=num_rendering,
        )

    def _images_at_once(self, like: RequestState) -> int:
        """How many pictures such as this one may run, by the pace and by room."""
        by_room = self.room_for_images(len(like.sequences), like.max_positions)
        return min(by_room, self.max_images(like))

    def room_for_images(self, pair: int, num_positions: int) -> int:
        """How many pictures of `pair` sequences may have slots. Thread-safe."""
        return self._images.capacity(pair, num_positions)

    # ---- growth and set-back --------------------------------------------------------------------

    def _take_back(self) -> None:
        """A picture lacks nothing but room: set text back that fills the share of pictures."""
        first = next(iter(self._images.waiting), None)
        if first is None or not self._has_place(self._images, first):
            return
        while not self._fits(first) and self._texts.is_in_debt():
            self._set_back(max(self._texts.running, key=_order))

    def _make_room(self, plan: StepPlan) -> None:
        """Enlarge the slots of text that is about to outgrow them, setting back the newest text
        requests until there is room."""
        for state in sorted(self._texts.running, key=_order):
            slot = state.sequences[0].slot
            while slot is not None and slot.capacity < len(state.sequences[0].tokens):
                grown = self._pool.grow(slot, self._reservation(state)) or self._pool.grow(
                    slot, len(state.sequences[0].tokens)
                )
                if grown is not None:
                    state.sequences[0].slot, copy = grown
                    plan.add_copy(copy)
                    break
                newest = max(self._texts.running, key=_order)
                self._set_back(newest)
                if newest is state:
                    break

    def _set_back(self, state: RequestState) -> None:
        """Free the slot of a text request and let it wait again, in its old place."""
        self._texts.running.remove(state)
        self._free(state, keep=len(state.sequences[0].tokens))
        state.embedded.clear()
        self._texts.waiting.add(state)
        self.num_set_backs += 1

    def _free(self, state: RequestState, *, keep: int) -> None:
        for sequence in state.sequences:
            if sequence.slot is not None:
                self._pool.release(sequence.slot, keep=keep)
                sequence.slot = None

    def _reservation(self, state: RequestState) -> int:
        """Positions to reserve per sequence: all for pictures, some ahead for text."""
        if state.is_image:
            return state.max_positions
        ahead = len(state.sequences[0].tokens) + self._settings.text_growth_tokens
        return min(state.max_positions, ahead)

    # ---- admission ------------------------------------------------------------------------------

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Give slots to waiting requests, one of each kind in turn, while prefill can keep up."""
        self._images_first = not self._images_first
        turns = [self._images, self._texts] if self._images_first else [self._texts, self._images]
        while turns:
            for kind in list(turns):
                other = self._texts if kind is self._images else self._images
                yields = self._patience_is_over(other, before=kind)
                if yields or kind.backlog_tokens() >= budget or not self._admit_one(kind, plan):
                    turns.remove(kind)

    def _admit_one(self, kind: Kind, plan: StepPlan) -> bool:
        """Admit the first waiting request that need not wait for a prefix being computed right
        now."""
        for state in kind.waiting.first(LOOK_AHEAD):
            if not self._may_start(kind, state):
                return False
            prefixes = [self._pool.find_prefix(s.keys, s.salt) for s in state.sequences]
            if any(p.num_promised - p.num_ready >= BLOCK_TOKENS for p in prefixes):
                continue
            if not self._acquire(state, prefixes, plan):
                self._block(state)
                return False
            kind.waiting.take(state)
            kind.running.append(state)
            plan.started.append(state)
            state.blocked_since = None
            return True
        return False

    def _has_place(self, kind: Kind, state: RequestState) -> bool:
        """Whether the share of its kind and the pace leave a place for a request."""
        if state.is_image and (self._holds_images or len(kind.running) >= self.max_images(state)):
            return False
        num_sequences = len(state.sequences)
        return kind.within_quota(num_sequences, self._reservation(state) * num_sequences)

    def _may_start(self, kind: Kind, state: RequestState) -> bool:
        if not self._has_place(kind, state):
            return False
        if self._fits(state):
            return True
        self._block(state)
        return False

    def _fits(self, state: RequestState) -> bool:
        """Whether there are rows and room for all sequences of a request."""
        num_sequences = len(state.sequences)
        num_rows = self._texts.num_sequences + self._images.num_sequences + num_sequences
        return num_rows <= self._settings.max_sequences and self._pool.has_room(
            [self._reservation(state)] * num_sequences
        )

    def _acquire(self, state: RequestState, prefixes: list[Prefix], plan: StepPlan) -> bool:
        """Slots for all sequences of a request, or none."""
        copies: list[Copy | None] = []
        for sequence, prefix in zip(state.sequences, prefixes, strict=True):
            # Taking the first slot may have evicted or taken over the second one's prefix.
            found = prefix if not copies else self._pool.find_prefix(sequence.keys, sequence.salt)
            acquired = self._pool.acquire(
                sequence.keys,
                sequence.salt,
                capacity=self._reservation(state),
                prefix=found,
                from_top=not state.is_image,
            )
            if acquired is None:
                self._free(state, keep=0)
                return False
            sequence.slot, copy = acquired
            copies.append(copy)
        for copy in copies:
            plan.add_copy(copy)
        self._count_prefixes(state)
        return True

    def _count_prefixes(self, state: RequestState) -> None:
        self.prefix_queries_tokens += sum(len(s.tokens) for s in state.sequences)
        self.prefix_hits_tokens += sum(s.num_computed for s in state.sequences)
        self.uncond_prefix_hits_tokens += sum(s.num_computed for s in state.sequences[1:])
        if state.num_output == 0:
            state.num_cached = state.sequences[0].num_computed

    def _block(self, state: RequestState) -> None:
        if state.blocked_since is None:
            state.blocked_since = self.num_steps

    def _patience_is_over(self, kind: Kind, *, before: Kind) -> bool:
        """Whether the first request of `kind` lacks room for so long, and longer than that of
        `before`, that `before` must leave it the room that becomes free."""
        since = kind.blocked_since()
        if since is None or self.num_steps - since < self._settings.patience_steps:
            return False
        others = before.blocked_since()
        return others is None or since < others

    # ---- filling the step -----------------------------------------------------------------------

    def _plan_prompts(self, plan: StepPlan, budget: int, decoding: set[RequestState]) -> int:
        """Chunks for text that does not decode yet; returns their tokens."""
        left = most = self._pace.prompt_tokens(plan.load, most=budget)
        if most == budget:
            # Nothing but the budget limits prompts, so a share of it is for pictures. A pair needs
            # two tokens at once to finish its prefill.
            share = max(2, int(budget * self._settings.image_prefill_share))
            left -= min(self._images.prompt_tokens(decoding), share)
        num_tokens = 0
        for state in self._texts.running:
            if state not in decoding:
                num_tokens += self._plan_text_prefill(plan, state, left - num_tokens)
        return num_tokens

    def _plan_pictures(
        self, plan: StepPlan, budget: int, decoding: set[RequestState], answers: StepLoad
    ) -> None:
        """A code for every picture, the oldest first, then their prompts, as far as the pace
        allows beside the text that is planned already."""
        pace, text = self._pace, plan.load
        ceiling_s = pace.ceiling_s(answers, text)
        must_draw = pace.must_draw
        for state in self._images.running:
            if state not in decoding:
                continue
            if must_draw or pace.fits(plan.load + decode_load(state), ceiling_s):
                plan.add_decode(state)
                must_draw = False
        for state in self._images.running:
            if state in decoding:
                continue
            most = pace.image_tokens(plan.load, ceiling_s, most=budget)
            if must_draw:
                most = max(most, min(budget, 2))
                must_draw = False
            budget -= plan_image_prefill(plan, state, most)
        pace.settle(text, plan.load, images_want=bool(self._images.running))

    def _plan_text_prefill(self, plan: StepPlan, state: RequestState, budget: int) -> int:
        """Plan a chunk of at most `budget` tokens; ends before an image whose embeddings must
        wait."""
        request, (sequence,) = state.request, state.sequences
        assert isinstance(request, TextRequest), "pictures have their own prefill"
        if budget <= 0:
            return 0
        first = sequence.num_computed
        end = min(len(sequence.tokens), first + budget)
        for index, image in enumerate(request.images):
            touches = image.first < end and image.first + image.num_tokens > first
            if not touches or index in state.embedded:
                continue
            runs_tower = not self._is_embedded(request.tenant, image)
            num_runs = sum(encode.runs_tower for encode in plan.encodes)
            if runs_tower and num_runs >= self._settings.encodes_per_step:
                end = image.first
                break
            plan.add_encode(Encode(state, index, runs_tower))
        if end <= first:
            return 0
        plan.add_prefill(state, sequence, end - first)
        if end == len(sequence.tokens):
            plan.sampling.append(state)
        return end - first

    def _kind_of(self, state: RequestState) -> Kind:
        return self._images if state.is_image else self._texts

    def _running(self) -> Iterator[RequestState]:
        yield from self._texts.running
        yield from self._images.running


_order = attrgetter("order")
