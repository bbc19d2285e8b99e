"""Who sits the exam: janus-mini behind transformers, or behind this project's engine.

Owns how questions and captions reach a model and come back. Knows nothing of right and wrong.
Invariant: both subjects see the same pixels and prompts and decode greedily, so their answers
agree; drawings are sampled with each one's own noise, so those agree in quality only.

Shape suffixes: B rows of a batch, T prompt positions, I pictures of a batch, C codebook, D width.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import DynamicCache, GenerationConfig, JanusForConditionalGeneration

from janus_core.engine.events import Failed, Finished, TextDelta
from janus_core.engine.settings import EngineSettings
from janus_core.options import DrawingDefaults
from janus_core.pipeline import ImageOptions, Pipeline, TextOptions
from janus_core.prompt import Message
from weights.recipe import chat
from weights.recipe.exam import Question
from weights.recipe.photographs import preprocess

MAX_ANSWER_TOKENS = 48
BATCH_ROWS = 32

ItemT = TypeVar("ItemT")


class Subject(Protocol):
    """Answers questions and draws captions. `drawing` is how its checkpoint wants to draw."""

    name: str
    drawing: DrawingDefaults

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """Return the greedy answers, stripped."""
        ...

    def draw(
        self, captions: Sequence[str], *, manner: DrawingDefaults, first_seed: int
    ) -> list[Image.Image]:
        """Return a picture of each caption, with seeds counted from the first."""
        ...


class TransformersSubject:
    """The checkpoint in transformers' own JanusForConditionalGeneration, float32 on the CPU."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        self._model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model.eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        defaults = json.loads((folder / "generation_config.json").read_text())
        self.drawing = DrawingDefaults.read(folder)
        self._eos_id = int(defaults["eos_token_id"])
        self._pad_id = int(defaults["pad_token_id"])
        self._num_codes = int(self._model.config.vision_config.num_image_tokens)

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[str]:
        greedy = GenerationConfig(
            do_sample=False,
            max_length=None,
            max_new_tokens=MAX_ANSWER_TOKENS,
            pad_token_id=self._eos_id,
            eos_token_id=self._eos_id,
        )
        answers: list[str] = []
        for batch in _batches(questions):
            prompts = [self._ids(self._question_prompt(question.text)) for question in batch]
            length = max(map(len, prompts))
            padding = [length - len(ids) for ids in prompts]
            rows = [[self._pad_id] * n + ids for n, ids in zip(padding, prompts, strict=True)]
            output = self._model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor([[0] * n + [1] * (length - n) for n in padding]),
                pixel_values=torch.stack([_pixels(question.picture) for question in batch]),
                generation_config=greedy,
            )
            answers += [self._text(ids) for ids in output[:, length:].tolist()]
        return answers

    def draw(
        self, captions: Sequence[str], *, manner: DrawingDefaults, first_seed: int
    ) -> list[Image.Image]:
        pictures: dict[int, Image.Image] = {}
        prompts = [self._ids(chat.drawing_prompt(caption)) for caption in captions]
        for batch in _equally_long(prompts):
            seeds = [first_seed + i for i in batch]
            drawn = self._draw_batch([prompts[i] for i in batch], manner, seeds)
            pictures.update(zip(batch, drawn, strict=True))
        return [pictures[i] for i in range(len(captions))]

    @torch.inference_mode()
    def _draw_batch(
        self, prompts: list[list[int]], manner: DrawingDefaults, seeds: list[int]
    ) -> list[Image.Image]:
        """Sample codes as deepseek's `generation_inference.py` does, with noise per picture."""
        model = self._model.model
        blank = [[ids[0], *[self._pad_id] * (len(ids) - 2), ids[-1]] for ids in prompts]
        inputs_BTD = model.language_model.embed_tokens(torch.tensor(prompts + blank))
        noises = [torch.Generator().manual_seed(seed) for seed in seeds]
        cache = DynamicCache()
        columns = []
        for _ in range(self._num_codes):
            output = model.language_model(
                inputs_embeds=inputs_BTD, past_key_values=cache, use_cache=True
            )
            cond_IC, uncond_IC = model.generation_head(output.last_hidden_state[:, -1]).chunk(2)
            logits_IC = uncond_IC + manner.guidance * (cond_IC - uncond_IC)
            codes_I = _sample(_filtered(logits_IC, manner), noises)
            columns.append(codes_I)
            embeddings = self._model.prepare_embeddings_for_image_generation(codes_I)
            inputs_BTD = embeddings.repeat(2, 1)[:, None]
        pixels = self._model.decode_image_tokens(torch.stack(columns, dim=1))
        levels = ((pixels + 1) * 127.5).clamp(0, 255).byte().numpy()
        return [Image.fromarray(level) for level in levels]

    def _question_prompt(self, text: str) -> str:
        picture = f"{chat.BEGIN_OF_IMAGE}{chat.IMAGE * self._num_codes}{chat.END_OF_IMAGE}"
        return chat.system() + chat.user_turn(f"{picture}\n{text}")

    def _ids(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(prompt).ids
        return ids

    def _text(self, ids: list[int]) -> str:
        end = ids.index(self._eos_id) if self._eos_id in ids else len(ids)
        text: str = self._tokenizer.decode(ids[:end])
        return text.strip()


class EngineSubject:
    """The checkpoint in this project's engine, as the server and the command line run it."""

    name = "engine"

    def __init__(self, folder: Path) -> None:
        settings = EngineSettings(max_sequences=2 * BATCH_ROWS)
        self._pipeline = Pipeline.load(str(folder), settings=settings)
        self.drawing = self._pipeline.drawing_defaults

    def answer(self, questions: Sequence[Question]) -> list[str]:
        options = TextOptions(seed=0, temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)
        answers: list[str] = []
        for batch in _batches(questions):
            requests = []
            for i, question in enumerate(batch):
                image = self._pipeline.prepare_image(_png(question.picture))
                message = Message("user", (image, question.text))
                requests += self._pipeline.text_requests([message], options, request_id=str(i))
            texts = dict.fromkeys((request.id for request in requests), "")
            for event in self._pipeline.run(requests):
                if isinstance(event, TextDelta):
                    texts[event.request_id] += event.text
                elif isinstance(event, Failed):
                    raise event.error
            answers += [text.strip() for text in texts.values()]
        return answers

    def draw(
        self, captions: Sequence[str], *, manner: DrawingDefaults, first_seed: int
    ) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for batch in _batches(list(enumerate(captions, first_seed))):
            requests = []
            for seed, caption in batch:
                options = ImageOptions(seed=seed, **asdict(manner))
                requests += self._pipeline.image_requests(caption, options, request_id=str(seed))
            drawn: dict[str, Image.Image] = {}
            for event in self._pipeline.run(requests):
                if isinstance(event, Finished) and event.pixels is not None:
                    drawn[event.request_id] = Image.fromarray(event.pixels)
                elif isinstance(event, Failed):
                    raise event.error
            pictures += [drawn[request.id] for request in requests]
        return pictures


def _batches(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), BATCH_ROWS):
        yield items[start : start + BATCH_ROWS]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(picture: Image.Image) -> torch.Tensor:
    """Return `[3, side, side]` in -1..1."""
    levels = torch.from_numpy(np.array(preprocess(picture.convert("RGB")).image))
    return levels.permute(2, 0, 1).float() / 127.5 - 1


def _equally_long(prompts: list[list[int]]) -> Iterator[Sequence[int]]:
    """Yield the indices of prompts of one length, so that no batch needs padding."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(prompts):
        by_length[len(ids)].append(i)
    for indices in by_length.values():
        yield from _batches(indices)


def _filtered(logits_IC: torch.Tensor, manner: DrawingDefaults) -> torch.Tensor:
    """Return the logits at the temperature; codes beyond the likeliest `top_p` are excluded."""
    logits_IC = logits_IC / manner.temperature
    likeliest_IC, codes_IC = logits_IC.softmax(-1).sort(dim=-1, descending=True)
    before_IC = likeliest_IC.cumsum(-1) - likeliest_IC
    excluded_IC = torch.zeros_like(before_IC, dtype=torch.bool)
    excluded_IC.scatter_(1, codes_IC, before_IC >= manner.top_p)
    return logits_IC.masked_fill(excluded_IC, -torch.inf)


def _sample(logits_IC: torch.Tensor, noises: list[torch.Generator]) -> torch.Tensor:
    """Return one code per row: the argmax of the logits with Gumbel noise."""
    rows = [torch.empty(logits_IC.shape[1]).exponential_(generator=noise) for noise in noises]
    return (logits_IC - torch.stack(rows).log()).argmax(dim=1)


def subject_of(backend: Literal["engine", "transformers"], folder: Path) -> Subject:
    """Return the checkpoint behind "engine" or "transformers"."""
    return EngineSubject(folder) if backend == "engine" else TransformersSubject(folder)
