"""transformers' Janus as a side of the comparison, and DeepSeek's own sampling loop over it.

Owns how both are driven. `generate` is called as its users call it (static cache, its own sampling)
and asked for fewer codes; the loop follows `generation_inference.py` of `deepseek-ai/Janus`:
interleaved conditional and unconditional rows, a cache that grows by concatenation, `multinomial`
over a softmax. Invariant: sampling is at temperature 1 without filters, as this engine draws.

Shape suffixes: B rows, I pictures, T positions, D model width, N heads, H head width, C codebook.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import DynamicCache, JanusForConditionalGeneration

from benchmarks import sides
from benchmarks.inputs import GUIDANCE, Inputs, PictureInputs, QuestionInputs
from benchmarks.sides import Key, Task, Work

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TransformersSide:
    """`JanusForConditionalGeneration` in one dtype, one request after the other."""

    def __init__(self, directory: Path, work: Work, *, dtype: str) -> None:
        self._work = work
        self._dtype = dtype
        self._model = JanusForConditionalGeneration.from_pretrained(
            directory, dtype=DTYPES[dtype]
        ).eval()

    def tasks(self) -> Mapping[Key, Task]:
        """All but the mix, which `generate` cannot do."""
        made: dict[Key, Task] = {
            (self._name, sides.STEP): lambda: self.steps(1),
            (self._name, sides.FOUR_STEP): lambda: self.steps(sides.NUM_TOGETHER),
            (self._name, sides.FIRST): self.first_code,
            (self._name, sides.PIXELS): self.pixels,
            (self._name, sides.QUESTION): lambda: self.question(self._work.first_question),
            (self._name, sides.AGAIN): lambda: self.question(self._work.second_question),
        }
        loop = f"deepseek loop {self._dtype}"
        made[loop, sides.STEP] = lambda: self.loop_steps(1)
        made[loop, sides.FOUR_STEP] = lambda: self.loop_steps(sides.NUM_TOGETHER)
        return made

    def whole_tasks(self) -> Mapping[Key, Task]:
        """One request after the other."""
        return {
            (self._name, inputs.name): partial(self.whole, inputs)
            for inputs in self._work.workloads
        }

    def close(self) -> None:
        """Forget the model."""
        del self._model
        sides.release()

    @property
    def _name(self) -> str:
        return f"transformers {self._dtype}"

    # ---- generate -------------------------------------------------------------------------------

    def steps(self, num_pictures: int) -> list[float]:
        """Seconds of decode steps of `num_pictures` pictures of one prompt.

        The cache is static, as long as a whole picture needs and attended to in full from the
        first step, so steps at the start cost what steps at the mean context do.
        """
        # The first call is the prefill; the last step ends where another would begin.
        wanted = self._work.effort.num_steps + 3
        with self._watched() as moments:
            self._draw(self._work.pictures[0], num_codes=wanted, num_pictures=num_pictures)
        return _differences(moments[2:])

    def first_code(self) -> list[float]:
        """Seconds from the call to the first code."""
        start = time.perf_counter()
        self._draw(self._work.pictures[0], num_codes=1)
        return [time.perf_counter() - start]

    @torch.inference_mode()
    def pixels(self) -> list[float]:
        """Seconds of decoding the codes of one picture."""
        codes = torch.arange(self._work.num_codes)[None] % 16
        start = time.perf_counter()
        self._model.decode_image_tokens(codes)
        return [time.perf_counter() - start]

    @torch.inference_mode()
    def question(self, question: QuestionInputs) -> list[float]:
        """Seconds from the call to the first word."""
        start = time.perf_counter()
        self.answer(question)
        return [time.perf_counter() - start]

    def whole(self, inputs: Inputs) -> list[float]:
        """Seconds of all pictures with their pixels, and of all answers."""
        start = time.perf_counter()
        for picture in inputs.pictures:
            codes = self._draw(picture, num_codes=self._work.num_codes)
            with torch.inference_mode():
                pixels = self._model.decode_image_tokens(codes)[0]
                ((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8)
        for question in inputs.questions:
            self.answer(question)
        return [time.perf_counter() - start]

    @torch.inference_mode()
    def answer(self, question: QuestionInputs) -> tuple[int, ...]:
        """The words of a greedy answer of exactly the wanted length."""
        token_ids = torch.tensor([question.token_ids])
        pixels = question.pixels_CHW
        images = {} if pixels is None else {"pixel_values": torch.from_numpy(pixels)[None]}
        if pixels is not None:
            images["pixel_values"] = images["pixel_values"].to(self._model.dtype)
        output = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=False,
            min_new_tokens=question.num_tokens,
            max_new_tokens=question.num_tokens,
            **images,
        )
        return tuple(output[0, token_ids.shape[1] :].tolist())

    @torch.inference_mode()
    def _draw(
        self, picture: PictureInputs, *, num_codes: int, num_pictures: int = 1
    ) -> torch.Tensor:
        """Codes `[I, num_codes]`; the number is what the vision tower's config says, for want of a
        parameter."""
        torch.manual_seed(picture.seed)
        token_ids = torch.tensor([picture.token_ids])
        config = self._model.model.vision_model.config
        whole, config.num_image_tokens = config.num_image_tokens, num_codes
        try:
            codes: torch.Tensor = self._model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                generation_mode="image",
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                guidance_scale=GUIDANCE,
                num_return_sequences=num_pictures,
                max_length=token_ids.shape[1] + self._work.num_codes,
            )
        finally:
            config.num_image_tokens = whole
        return codes

    @contextmanager
    def _watched(self) -> Iterator[list[float]]:
        """The moments at which the backbone is called; the time between two is a whole step."""
        moments: list[float] = []
        handle = self._model.model.language_model.register_forward_pre_hook(
            lambda *_: moments.append(time.perf_counter())
        )
        try:
            yield moments
        finally:
            handle.remove()

    # ---- DeepSeek's loop ------------------------------------------------------------------------

    @torch.inference_mode()
    def loop_steps(self, num_pictures: int) -> list[float]:
        """Seconds of steps around the mean context, which is filled with zeros instead of being
        computed: what is in the cache changes no time."""
        model = self._model.model
        num_steps = self._work.effort.num_steps
        context = self._work.mean_context - num_steps // 2
        cache = self._filled_cache(2 * num_pictures, context)
        codes_I = torch.zeros(num_pictures, dtype=torch.long)
        moments = []
        for _ in range(num_steps + 2):
            moments.append(time.perf_counter())
            rows = self._model.prepare_embeddings_for_image_generation(codes_I)
            inputs_BTD = rows.repeat_interleave(2, dim=0)[:, None]
            output = model.language_model(
                inputs_embeds=inputs_BTD, past_key_values=cache, use_cache=True
            )
            logits_BC = model.generation_head(output.last_hidden_state[:, -1])
            cond_IC, uncond_IC = logits_BC[0::2], logits_BC[1::2]
            logits_IC = uncond_IC + GUIDANCE * (cond_IC - uncond_IC)
            codes_I = torch.multinomial(logits_IC.softmax(dim=-1), num_samples=1)[:, 0]
        return _differences(moments[1:])

    def _filled_cache(self, num_rows: int, context: int) -> DynamicCache:
        text = self._model.config.text_config
        shape = (num_rows, text.num_key_value_heads, context, text.head_dim)
        cache = DynamicCache()
        for layer in range(text.num_hidden_layers):
            zeros_BNTH = torch.zeros(shape, dtype=self._model.dtype)
            cache.update(zeros_BNTH, zeros_BNTH, layer)
        return cache


def _differences(moments: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(moments)]
