"""llama.cpp's half of the comparison, run by the Python of its own environment.

Owns one llama.cpp context; imports nothing of this project, because it is not installed there.
Reads one JSON object from standard input and prints one: the seconds of decode steps of guided
pictures around the mean context, two sequences a picture, and of the prompt of one picture. What
draws a code from the two rows of logits is the same arithmetic as everywhere else, in NumPy.
"""

import contextlib
import json
import os
import sys
import time

import llama_cpp
import numpy as np

GUIDANCE = 5.0


class Context:
    """A model with room for `num_sequences` sequences of `num_positions` positions each."""

    def __init__(self, path: str, *, num_sequences: int, num_positions: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = num_sequences * num_positions
        settings.n_seq_max = num_sequences
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        if hasattr(settings, "kv_unified"):
            settings.kv_unified = False
        if hasattr(settings, "flash_attn_type"):
            settings.flash_attn_type = 1
        elif hasattr(settings, "flash_attn"):
            settings.flash_attn = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise SystemExit("llama.cpp cannot make a context")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._num_codes = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)

    def prefill(self, sequence: int, num_tokens: int) -> float:
        """Seconds of `num_tokens` tokens of one sequence."""
        start = time.perf_counter()
        for first in range(0, num_tokens, 512):
            rows = [
                (sequence, position, 1 + position % 97, position == num_tokens - 1)
                for position in range(first, min(first + 512, num_tokens))
            ]
            self._decode(rows)
        return time.perf_counter() - start

    def copy(self, source: int, target: int) -> None:
        """Let `target` begin with a copy of what `source` has cached."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_cp(memory, source, target, -1, -1)

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def steps(self, num_pictures: int, *, context: int, num_steps: int) -> list[float]:
        """Seconds of each of `num_steps` steps with two sequences a picture."""
        rng = np.random.default_rng(0)
        codes = [1] * num_pictures
        durations = []
        for position in range(context, context + num_steps + 1):
            start = time.perf_counter()
            self._decode(
                [(row, position, codes[row // 2], True) for row in range(2 * num_pictures)]
            )
            codes = [self._draw(2 * index, rng) for index in range(num_pictures)]
            durations.append(time.perf_counter() - start)
        return durations[1:]

    def _draw(self, row: int, rng: np.random.Generator) -> int:
        cond_C, uncond_C = (
            np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(self._context, each), shape=(self._num_codes,)
            )
            for each in (row, row + 1)
        )
        guided_C = uncond_C + GUIDANCE * (cond_C - uncond_C)
        return int(np.argmax(guided_C + rng.gumbel(size=self._num_codes)))

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (sequence, position, token, wants_logits) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wants_logits
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode failed with {status}")


def quantize(source: str, target: str, kind: str) -> None:
    """Write `target`, `source` in the format `kind` (Q8_0, Q4_0), as llama.cpp's own tool does."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters) != 0:
        raise SystemExit(f"llama.cpp cannot quantize to {kind}")


def measure(order: dict) -> dict:
    """Do what one order says."""
    num_steps, counts = order["num_steps"], order["num_pictures"]
    context = order["mean_context"] - num_steps // 2
    model = Context(
        order["path"],
        num_sequences=2 * max(counts),
        num_positions=context + num_steps + 2,
        threads=order["threads"],
    )
    model.prefill(0, order["prompt_tokens"])
    model.clear()
    # Both sequences of a picture have to be computed: their prompts differ.
    first_s = sum(model.prefill(sequence, order["prompt_tokens"]) for sequence in (0, 1))
    model.clear()
    model.prefill(0, context)
    for sequence in range(1, 2 * max(counts)):
        model.copy(0, sequence)
    steps = {}
    for count in counts:
        steps[str(count)] = model.steps(count, context=context, num_steps=num_steps)
        memory = llama_cpp.llama_get_memory(model._context)
        for sequence in range(2 * count):
            llama_cpp.llama_memory_seq_rm(memory, sequence, context, -1)
    info = llama_cpp.llama_print_system_info().decode()
    return {"first_s": first_s, "steps": steps, "version": llama_cpp.__version__, "system": info}


def main() -> None:
    """One order, one answer; whatever llama.cpp prints goes to standard error."""
    order = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            if order["task"] == "quantize":
                quantize(order["source"], order["target"], order["kind"])
                answer = {}
            else:
                answer = measure(order)
        json.dump(answer, answers)


if __name__ == "__main__":
    main()
