"""The whole model in training: rows in, losses out; and how a trained one draws.

Owns the forward pass over rows that mix words, pictures and codes. Knows nothing of optimisers or
scenes. Invariant: the three places where the two pathways differ (embedding in, head out, how a
sequence ends) are the only ones here.

Shapes: B rows, T tokens, D width, V text vocabulary, C codebook, K pictures, I drawn images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, JanusForConditionalGeneration

from weights.recipe.geometry import NUM_CODES, janus_config
from weights.recipe.perception import label, loss_of
from weights.recipe.sequences import IGNORED, NUM_KINDS, Batch
from weights.recipe.tokenizer import VOCAB_SIZE, special_ids
from weights.recipe.training import pixels

PLACES_PER_SIDE = 10
# Rows, columns, and numbers of objects begun.
DRAWN_SIZES = [8, 8, 4]
# Half way: the layers after it compare.
LOCATING_LAYER = 3


class Losses(NamedTuple):
    """Mean losses per token (zero where a batch has none), and the argmax at every labelled
    position."""

    text: Tensor
    codes: Tensor
    perception: Tensor
    places: Tensor
    drawn: Tensor
    due: Tensor
    chosen_BT: Tensor


def build(tokenizer: Tokenizer) -> JanusForConditionalGeneration:
    """Return an untrained model of the final geometry."""
    model = JanusForConditionalGeneration(janus_config(special_ids(tokenizer), VOCAB_SIZE))
    # Fused attention is slower than plain products for short rows on a CPU.
    model.set_attn_implementation("eager")
    return model


def see(model: JanusForConditionalGeneration, batch: Batch) -> Tensor | None:
    """Return the tower's features `[K, P, D]` of a batch's pictures."""
    if not batch.seen:
        return None
    images = pixels([photo.image for _, photo in batch.seen])
    features: Tensor = model.model.vision_model(images).last_hidden_state
    return features


def embed(
    model: JanusForConditionalGeneration, batch: Batch, features_KPD: Tensor | None
) -> Tensor:
    """Return `[B, T, D]`: words, codes and pictures, each through its own path."""
    core = model.model
    ids_BT = batch.ids_BT
    is_code_BT = ids_BT >= VOCAB_SIZE
    x_BTD = core.language_model.embed_tokens(torch.where(is_code_BT, 0, ids_BT))
    if is_code_BT.any():
        codes = ids_BT[is_code_BT] - VOCAB_SIZE
        x_BTD[is_code_BT] = core.generation_aligner(core.generation_embeddings(codes)).to(
            x_BTD.dtype
        )
    if features_KPD is not None:
        seen = core.aligner(features_KPD)
        x_BTD[ids_BT == model.config.image_token_id] = seen.flatten(0, 1).to(x_BTD.dtype)
    return x_BTD


def losses(
    model: JanusForConditionalGeneration,
    batch: Batch,
    heads: nn.Linear | None = None,
    locators: nn.ModuleDict | None = None,
) -> Losses:
    """Return the losses of answers, codes, perception (given heads) and places (given locators).

    Each position is judged by the token after it.
    """
    core = model.model
    features_KPD = see(model, batch)
    perception = torch.zeros(())
    if heads is not None and features_KPD is not None:
        scenes, photographs = zip(*batch.seen, strict=True)
        perception, _ = loss_of(heads(features_KPD), label(list(scenes), list(photographs)))
    out = core.language_model(
        inputs_embeds=embed(model, batch, features_KPD),
        attention_mask=batch.mask_B1TT,
        position_ids=batch.positions_BT,
        use_cache=False,
        output_hidden_states=locators is not None,
    )
    h_BTD = out.last_hidden_state
    places = drawn = due = torch.zeros(())
    if locators is not None and batch.mentions:
        places = _place_loss(locators["places"], out.hidden_states[LOCATING_LAYER], batch)
    if locators is not None and batch.drawn:
        drawn = _drawn_loss(locators["drawn"], out.hidden_states[LOCATING_LAYER], batch)
    if locators is not None and batch.due:
        due = _due_loss(locators["due"], out.hidden_states[LOCATING_LAYER], batch)
    next_BT = F.pad(batch.labels_BT[:, 1:], (0, 1), value=IGNORED)
    chosen_BT = torch.full_like(next_BT, IGNORED)
    is_text = (next_BT >= 0) & (next_BT < VOCAB_SIZE)
    is_code = next_BT >= VOCAB_SIZE
    text = codes = torch.zeros(())
    if is_text.any():
        logits_V = model.lm_head(h_BTD[is_text]).float()
        chosen_BT[is_text] = logits_V.argmax(-1)
        text = F.cross_entropy(logits_V, next_BT[is_text])
    if is_code.any():
        logits_C = core.generation_head(h_BTD[is_code]).float()
        chosen_BT[is_code] = logits_C.argmax(-1) + VOCAB_SIZE
        codes = F.cross_entropy(logits_C, next_BT[is_code] - VOCAB_SIZE)
    return Losses(text, codes, perception, places, drawn, due, chosen_BT)


def _place_loss(locator: nn.Module, h_BTD: Tensor, batch: Batch) -> Tensor:
    """Return how badly column and row of an object are read where a question has named it.

    Without this the network takes very long to find out that it has to compare two places.
    """
    rows, tokens, x, y = (torch.tensor(values) for values in zip(*batch.mentions, strict=True))
    across, down = locator(h_BTD[rows, tokens]).float().chunk(2, -1)
    bins = (torch.stack((x, y)) * PLACES_PER_SIDE).long().clamp(0, PLACES_PER_SIDE - 1)
    return F.cross_entropy(across, bins[0]) + F.cross_entropy(down, bins[1])


def _drawn_loss(locator: nn.Module, h_BTD: Tensor, batch: Batch) -> Tensor:
    """Return how badly the state of a drawing is read before each code.

    The state is row and column of the next code, and how many objects have begun.
    """
    rows, tokens, *state = (torch.tensor(values) for values in zip(*batch.drawn, strict=True))
    parts = locator(h_BTD[rows, tokens]).float().split(DRAWN_SIZES, -1)
    return sum(
        (F.cross_entropy(part, target) for part, target in zip(parts, state, strict=True)),
        start=torch.zeros(()),
    )


def _due_loss(locator: nn.Module, h_BTD: Tensor, batch: Batch) -> Tensor:
    """Return how badly is read, before each code, what the caption asks for and has not begun.

    Without this the network is slow to find out that each object is to be drawn once.
    """
    rows, tokens, kinds = zip(*batch.due, strict=True)
    wanted = torch.zeros(len(rows), NUM_KINDS)
    where = [(i, kind) for i, some in enumerate(kinds) for kind in some]
    if where:
        wanted[tuple(torch.tensor(where).T)] = 1.0
    logits = locator(h_BTD[torch.tensor(rows), torch.tensor(tokens)]).float()
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return each.sum(-1).mean()


def answered(batch: Batch, chosen_BT: Tensor) -> list[tuple[str, bool]]:
    """Return (kind, right) for every question: greedy decoding gives the answer if each token of it
    is the argmax."""
    return [
        (kind, torch.equal(chosen_BT[row, begin - 1 : end - 1], batch.ids_BT[row, begin:end]))
        for row, kind, begin, end in batch.answers
    ]


@torch.no_grad()
def draw(
    model: JanusForConditionalGeneration,
    prompts: list[list[int]],
    *,
    guidance: float,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return codes `[I, 64]` for drawing prompts (ids with BOS): Janus' guided sampling, prompt by
    prompt length."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    codes_IS = torch.empty(len(prompts), NUM_CODES, dtype=torch.long)
    pad = model.config.text_config.pad_token_id
    for members in by_length.values():
        conditional = torch.tensor([prompts[i] for i in members])
        unconditional = torch.full_like(conditional, pad)
        unconditional[:, 0], unconditional[:, -1] = conditional[:, 0], conditional[:, -1]
        ids = torch.cat((conditional, unconditional))
        codes_IS[members] = _draw_equal(model, ids, guidance, temperature, generator)
    return codes_IS


def _draw_equal(
    model: JanusForConditionalGeneration,
    ids: Tensor,
    guidance: float,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    core = model.model
    cache = DynamicCache()
    x = core.language_model.embed_tokens(ids)
    drawn = []
    for _ in range(NUM_CODES):
        out = core.language_model(inputs_embeds=x, past_key_values=cache, use_cache=True)
        conditional, unconditional = (
            core.generation_head(out.last_hidden_state[:, -1]).float().chunk(2)
        )
        logits = (unconditional + guidance * (conditional - unconditional)) / temperature
        code = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        drawn.append(code)
        x = core.generation_aligner(core.generation_embeddings(code)).repeat(2, 1, 1)
    return torch.cat(drawn, 1)


def load_parts(model: nn.Module, states: dict[str, dict[str, Tensor]]) -> None:
    """Load each state under its prefix, strictly for the part."""
    for prefix, state in states.items():
        model.get_submodule(prefix).load_state_dict(state)
