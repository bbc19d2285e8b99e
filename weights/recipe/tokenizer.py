"""The tokenizer of janus-mini: a byte-level BPE over the world's phrasings, with Janus-Pro's
special tokens.

Owns the vocabulary and the order of special tokens. Invariant: the base vocabulary comes from a
fixed seed, so a tokenizer built again is the same; every byte has a token, so any text can be
encoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from weights.recipe import chat
from weights.recipe.captions import caption
from weights.recipe.language import questions
from weights.recipe.world import sample_scene

VOCAB_SIZE = 896
# In the order of Janus-Pro-1B's ids.
SPECIAL_TOKENS = {
    "bos": chat.BOS,
    "eos": chat.EOS,
    "pad": chat.PAD,
    "begin_of_image": chat.BEGIN_OF_IMAGE,
    "end_of_image": chat.END_OF_IMAGE,
    "image_placeholder": chat.IMAGE,
    "patch_placeholder": "<patch_placeholder>",
    "ref": "<|ref|>",
    "end_ref": "<|/ref|>",
    "det": "<|det|>",
    "end_det": "<|/det|>",
    "grounding": "<|grounding|>",
    "user": chat.USER,
    "assistant": chat.ASSISTANT,
}
NUM_TEXTS = 4000


def build() -> Tokenizer:
    """Return the trained tokenizer; `encode` puts BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()]
    )
    bos = tokenizer.token_to_id(chat.BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{chat.BOS} $A", pair=f"{chat.BOS} $A $B", special_tokens=[(chat.BOS, bos)]
    )
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens by their short names."""
    return {name: tokenizer.token_to_id(token) for name, token in SPECIAL_TOKENS.items()}


def _texts() -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(NUM_TEXTS):
        scene = sample_scene(rng)
        for question in questions(scene, rng):
            yield f": \n{question.text}\n\n"
            yield f" {question.answer}"
        yield f": {caption(sample_scene(rng, varied=False), rng).text}\n\n"
    # Often enough that their words become single tokens too.
    for _ in range(NUM_TEXTS // 20):
        yield chat.system()
        for text, answer in (*chat.SMALL_TALK, ("", chat.NO_IMAGE)):
            yield f": {text}\n\n"
            yield f" {answer}"
