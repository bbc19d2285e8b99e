"""Small byte-level BPE files shaped like Janus-Pro's and Janus-1.3B's, and the library as oracle.

The oracle recognises control tokens in a whole string; our tokenizer never does, so equal ids mean
that our prompts are segmented as the original's.
"""

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Bpe
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from janus_core.tokenizer import BOS, EOS, PAD, Tokenizer

PRO_CONTROLS = (
    *(BOS, EOS, PAD, "<begin_of_image>", "<end_of_image>", "<image_placeholder>"),
    *("<patch_placeholder>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"),
    *("<|User|>", "<|Assistant|>"),
)
JANUS_13B_CONTROLS = (BOS, EOS, PAD, "<begin_of_image>", "<end_of_image>")

CORPUS = (
    "User: What is shown in this image?\n\nAssistant: A red circle, left of a blue square.",
    "You are a helpful language and vision assistant. naïve café 图像 🙂 👩‍👩‍👧 <b>|x|</b>",
    "<image_placeholder> <|User|> <begin_of_image> for every user who types them",
)


@cache
def bpe_json(controls: tuple[str, ...] = PRO_CONTROLS, *, literals: tuple[str, ...] = ()) -> str:
    """A `tokenizer.json`: vocabulary, then `literals` (added, not special), then `controls`."""
    bpe = Bpe(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    alphabet = [letter for letter in ByteLevel.alphabet() if letter not in literals]
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([*CORPUS] * 4, trainer)
    bpe.add_tokens([AddedToken(text, special=False, normalized=True) for text in literals])
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    return bpe.to_str()


def definition(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return json.loads(bpe_json(*args, **kwargs))


def ours(*args: Any, **kwargs: Any) -> Tokenizer:
    return Tokenizer(definition(*args, **kwargs))


def oracle(*args: Any, **kwargs: Any) -> Bpe:
    return Bpe.from_str(bpe_json(*args, **kwargs))
