"""Carries out a plan: encode unseen images, copy prefixes, one forward pass, the heads, one sample
per request.

Owns the KV pool's tensors and the image embeddings of requests in prefill; knows nothing of text,
stops or events. Invariant: nothing it does is visible in a request's state; running a plan twice
writes the same keys and values again.

Shape suffixes: T packed tokens, R rows, I guided images, J unguided images, D width, V text
vocabulary, C codebook, S image slots, K alternatives, L rows with log-probabilities, F rows with a
constraint, N ids of the tokenizer.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from janus_core.engine.ahead import Flight, can_run_ahead, guidance_of, is_plain, pictures_of
from janus_core.engine.batch import Batch, build_batch, move_batch
from janus_core.engine.constraint import ConstraintCompiler, Mask, Matcher
from janus_core.engine.graphs import FIXED_ROWS, MAX_AHEAD, Picture, StepGraphs
from janus_core.engine.heads import FixedHeads, Heads
from janus_core.engine.plan import Encode, Sample, StepPlan
from janus_core.engine.request import TextRequest
from janus_core.engine.samples import num_top_of, unpack, wants_logprobs
from janus_core.engine.sequence import RequestState
from janus_core.engine.slots import Copy
from janus_core.engine.vision_cache import VisionCache
from janus_core.errors import ParameterError
from janus_core.models.janus import JanusModel
from janus_core.models.kv_pool import KvPool
from janus_core.ops.sampling import SamplingRow, needs_history, sample
from janus_core.ops.transfer import upload, upload_list
from janus_core.tokenizer import Tokenizer


class Runner:
    """Of `tokenizer` it needs only which ids an answer may contain, and for `constraints` their
    bytes."""

    def __init__(
        self,
        model: JanusModel,
        tokenizer: Tokenizer,
        *,
        kv: KvPool,
        vision_cache: VisionCache,
        graphs: StepGraphs | None = None,
    ) -> None:
        self.attach(model, kv=kv, graphs=graphs)
        self._vision_cache = vision_cache
        self._eos_id = tokenizer.eos_id
        self._embeddings: dict[RequestState, dict[int, torch.Tensor]] = {}
        self.constraints = ConstraintCompiler(tokenizer)
        self._matchers: dict[RequestState, Matcher] = {}
        self._lost: dict[RequestState, ParameterError] = {}
        self._num_ids = tokenizer.num_ids
        self._forbidden_V = torch.zeros(
            model.config.backbone.vocab_size, dtype=torch.bool, device=model.device
        )
        # Rows of the table without text, and control tokens: an answer cannot forge a prompt.
        self._forbidden_V[tokenizer.num_ids :] = True
        self._forbidden_V[sorted(tokenizer.control_ids - {tokenizer.eos_id})] = True

    @property
    def attention_backend(self) -> str:
        """What computes attention: in graphs, and in prompts too long for one."""
        name: str = self._model.language_model.attention.name
        if self._graphs is None:
            return name
        mine = self._graphs.attention
        return mine if self._graphs.is_deterministic else f"{mine}+{name}"

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far; a step in which this grows took longer than it will again."""
        return 0 if self._graphs is None else self._graphs.num_graphs

    def attach(self, model: JanusModel, *, kv: KvPool, graphs: StepGraphs | None) -> None:
        """Go on with this network and this memory; between two steps, when no request is live."""
        self._model, self._kv, self._graphs = model, kv, graphs
        is_fixed = graphs is not None and graphs.is_deterministic
        self._heads: Heads = FixedHeads(model) if is_fixed else model
        self._fixed_rows = FIXED_ROWS if is_fixed else None

    @torch.inference_mode()
    def copy(self, copies: list[Copy]) -> None:
        """Copy prefixes between slots, in order."""
        for copy in copies:
            self._kv.copy(copy.source, copy.target, copy.length)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sample]:
        """One step, without its copies. May be repeated for parts of the plan if it raises."""
        self._lost.clear()
        for encode in plan.encodes:
            self._encode(encode)
        batch, pictures, hidden_TD = self._forward(plan)
        parts: list[torch.Tensor] = []
        if batch.texts:
            parts += self._sample_texts(hidden_TD[batch.text_rows_R], batch.texts)
        if batch.guided or batch.unguided:
            parts += self._sample_codes(hidden_TD, batch, pictures)
        if not parts:
            return []
        # float64 holds every id exactly, so that one copy brings ids and log-probabilities.
        flat = torch.cat([part.double() for part in parts]).tolist()  # sync:
        samples = unpack(flat, batch)
        if not self._lost:
            return samples
        return [replace(each, error=self._lost.get(each.state)) for each in samples]

    @torch.inference_mode()
    def fly(self, plan: StepPlan) -> Flight | None:
        """The steps that begin with this plan, none of them launched; None where steps cannot run
        ahead. Nothing else may be run before the last launched step of a flight was read."""
        graphs = self._graphs
        if graphs is None or not can_run_ahead(plan):
            return None
        batch = build_batch(plan, self._embedding, device=torch.device("cpu"))
        pictures = pictures_of(batch)
        if not graphs.takes_ahead(batch.inputs, pictures):
            return None
        step = graphs.steps_ahead(batch.inputs, pictures, num_steps=MAX_AHEAD)
        return Flight(batch.images, step, num_codes=self._model.config.vq.num_codes)

    @torch.inference_mode()
    def clear(self, state: RequestState) -> None:
        """Zero the keys and values of a request: numbers that are not finite would spread to
        whoever gets these positions next. What is remembered of its images may hold them too."""
        self.distrust_images(state)
        for sequence in state.sequences:
            if sequence.slot is not None:
                self._kv.clear(sequence.slot.start, sequence.slot.capacity)

    def distrust_images(self, state: RequestState) -> None:
        """Run the tower again for the images of a request, whoever asks about them next."""
        request = state.request
        for image in request.images if isinstance(request, TextRequest) else ():
            self._vision_cache.discard((request.tenant, image.digest))

    def free_memory(self) -> None:
        """Give up what can be made again. The pool stays, with its prefixes: it was allocated at
        the start, and nothing else could use its memory."""
        self._vision_cache.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def hold(self, state: RequestState, matcher: Matcher) -> None:
        """Constrain what is said for a request, until it is forgotten."""
        self._matchers[state] = matcher

    def drop_embeddings(self, state: RequestState) -> None:
        """Drop the embeddings of a request's images; they are made again if they are needed."""
        self._embeddings.pop(state, None)

    def forget(self, state: RequestState) -> None:
        """Drop all that is held for a request that has ended."""
        self.drop_embeddings(state)
        self._matchers.pop(state, None)

    def _encode(self, encode: Encode) -> None:
        """Make the embeddings of one image available to the batch."""
        state, request = encode.state, encode.state.request
        assert isinstance(request, TextRequest), "only text requests have images"
        image = request.images[encode.index]
        key = (request.tenant, image.digest)
        embeddings_SD = self._vision_cache.get(key)
        if embeddings_SD is None:
            started_s = time.monotonic()
            pixels_BCHW = upload(torch.from_numpy(image.pixels_CHW)[None], self._model.device)
            embeddings_SD = self._model.encode_images(pixels_BCHW)[0]
            state.vision_encode_s += time.monotonic() - started_s
            self._vision_cache.put(key, embeddings_SD)
        assert len(embeddings_SD) == image.num_tokens, "as many embeddings as placeholders"
        self._embeddings.setdefault(state, {})[encode.index] = embeddings_SD

    def _forward(self, plan: StepPlan) -> tuple[Batch, list[Picture], torch.Tensor]:
        """The batch, its pictures for the graphs, and the hidden vectors of its packed tokens."""
        graphs, device = self._graphs, self._model.device
        if graphs is None:
            batch = build_batch(plan, self._embedding, device=device)
            return batch, [], self._model(batch.inputs, self._kv)
        on_cpu = build_batch(plan, self._embedding, device=torch.device("cpu"))
        batch = move_batch(on_cpu, device)
        # Read here, where it needs no copy from the device.
        pictures = pictures_of(on_cpu)
        if not graphs.takes(len(on_cpu.inputs.token_ids_T)):
            return batch, pictures, self._model(batch.inputs, self._kv)
        return batch, pictures, graphs.forward(on_cpu.inputs)

    def _embedding(self, state: RequestState, index: int) -> torch.Tensor:
        return self._embeddings[state][index]

    def _sample_texts(
        self, hidden_RD: torch.Tensor, states: list[RequestState]
    ) -> list[torch.Tensor]:
        """Ids and finiteness per row, then the log-probabilities for the rows that want them."""
        logits_RV = self._heads.text_logits(hidden_RD)
        finite_R = logits_RV.sum(dim=-1).isfinite()
        wanted = [row for row, state in enumerate(states) if num_top_of(state) is not None]
        wanted_K = upload_list(wanted, logits_RV.device)
        logprobs_KV = logits_RV[wanted_K].log_softmax(dim=-1) if wanted else None
        logits_RV.masked_fill_(self._forbidden_V, -torch.inf)
        rows = [self._text_row(state) for state in states]
        left = self._constrain(logits_RV, states, rows)
        ids_R = sample(logits_RV, left, fixed_rows=self._fixed_rows)
        parts = [ids_R, finite_R]
        if logprobs_KV is not None:
            num_top = max(num_top_of(states[row]) or 0 for row in wanted)
            parts.append(logprobs_KV.gather(1, ids_R[wanted_K, None]).flatten())
            top = logprobs_KV.masked_fill_(self._forbidden_V, -torch.inf).topk(num_top)
            parts += [top.indices.flatten(), top.values.flatten()]
        return parts

    def _text_row(self, state: RequestState) -> SamplingRow:
        request, tokens = state.request, state.sequences[0].tokens
        assert isinstance(request, TextRequest)
        banned_ids: tuple[int, ...] = ()
        if request.bad_sequences:
            banned_ids = _completing(request.bad_sequences, tokens[state.num_prompt :])
        if state.num_output < request.min_tokens:
            banned_ids += (self._eos_id, *request.stop_token_ids)
        has_penalty = needs_history(request.sampling)
        return SamplingRow(
            request.sampling,
            position=state.num_output,
            prompt_ids=request.token_ids if has_penalty else (),
            output_ids=tokens[state.num_prompt :] if has_penalty else (),
            banned_ids=banned_ids,
        )

    def _constrain(
        self, logits_RV: torch.Tensor, states: list[RequestState], rows: list[SamplingRow]
    ) -> list[SamplingRow]:
        """Make what the constraints of some rows do not allow impossible, and what is banned there
        unless nothing would be left; returns the rows that are left to sample. A constraint that
        cannot be followed any further makes its request one of the `_lost`.

        On a GPU the masks are computed while it works on the hidden vectors: nothing has waited for
        those yet.
        """
        masks_FN: list[Mask] = []
        constrained: list[int] = []
        left = list(rows)
        for index, (state, row) in enumerate(zip(states, rows, strict=True)):
            matcher = self._matchers.get(state)
            if matcher is None:
                continue
            try:
                allowed_N = matcher.mask(state.output_ids)
            except ParameterError as error:
                self._lost[state] = error
                continue
            wanted_N = allowed_N.copy()
            wanted_N[[i for i in row.banned_ids if i < self._num_ids]] = False
            masks_FN.append(wanted_N if wanted_N.any() else allowed_N)
            constrained.append(index)
            left[index] = replace(row, banned_ids=())
        if constrained:
            device = logits_RV.device
            forbidden_FN = upload(torch.from_numpy(~np.stack(masks_FN)), device)
            index_F = upload_list(constrained, device)
            logits_FN = logits_RV[index_F, : self._num_ids]
            logits_RV[index_F, : self._num_ids] = logits_FN.masked_fill_(forbidden_FN, -torch.inf)
        return left

    def _sample_codes(
        self, hidden_TD: torch.Tensor, batch: Batch, pictures: list[Picture]
    ) -> list[torch.Tensor]:
        """Codes and finiteness per picture, guided ones first.

        On CUDA a picture without filters, penalties and log-probabilities is drawn by the graphs,
        beside whatever others: which function draws it depends on its request alone.
        """
        plain = [row for row, state in enumerate(batch.images) if is_plain(state)]
        if self._graphs is None or not plain:
            return self._sample_logits(hidden_TD, batch)
        codes_R, finite_R = self._graphs.draw(hidden_TD, [pictures[row] for row in plain])
        if len(plain) == len(pictures):
            return [codes_R, finite_R]
        parts = self._sample_logits(hidden_TD, batch)
        plain_R = upload_list(plain, hidden_TD.device)
        parts[0][plain_R], parts[1][plain_R] = codes_R, finite_R
        return parts

    def _sample_logits(self, hidden_TD: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        """Codes and finiteness of all pictures, then log-probabilities where they are wanted."""
        parts_C = []
        if batch.guided:
            scales = [guidance_of(state) for state in batch.guided]
            guidance_I = upload_list(scales, hidden_TD.device, dtype=torch.float32)
            parts_C.append(
                self._heads.guided_code_logits(
                    hidden_TD[batch.cond_rows_I], hidden_TD[batch.uncond_rows_I], guidance_I
                )
            )
        if batch.unguided:
            parts_C.append(self._heads.code_logits(hidden_TD[batch.solo_rows_J]))
        logits_RC = parts_C[0] if len(parts_C) == 1 else torch.cat(parts_C)
        finite_R = logits_RC.sum(dim=-1).isfinite()
        rows = [self._code_row(state) for state in batch.images]
        wanted = [row for row, state in enumerate(batch.images) if wants_logprobs(state)]
        wanted_L = upload_list(wanted, hidden_TD.device)
        guided_LC = logits_RC[wanted_L].log_softmax(dim=-1) if wanted else None
        codes_R = sample(logits_RC, rows, fixed_rows=self._fixed_rows)
        parts = [codes_R, finite_R]
        if guided_LC is not None:
            codes_L1 = codes_R[wanted_L, None]
            num_guided = sum(row < len(batch.guided) for row in wanted)
            guided_L = wanted_L[:num_guided]
            for rows_I in (batch.cond_rows_I, batch.uncond_rows_I):
                logits_LC = self._heads.code_logits(hidden_TD[rows_I[guided_L]])
                logprobs_LC = logits_LC.log_softmax(dim=-1)
                parts.append(logprobs_LC.gather(1, codes_L1[:num_guided]).flatten())
            parts.append(guided_LC.gather(1, codes_L1).flatten())
        return parts

    def _code_row(self, state: RequestState) -> SamplingRow:
        params, vocab_size = state.request.sampling, self._model.config.backbone.vocab_size
        drawn = state.output_ids if needs_history(params) else ()
        return SamplingRow(
            params, position=state.num_output, output_ids=[i - vocab_size for i in drawn]
        )


def _completing(sequences: tuple[tuple[int, ...], ...], output_ids: list[int]) -> tuple[int, ...]:
    """The ids that would complete one of `sequences` now."""
    return tuple(
        ids[-1]
        for ids in sequences
        if len(ids) == 1 or output_ids[1 - len(ids) :] == list(ids[:-1])
    )
