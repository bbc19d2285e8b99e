"""The tensor names of both checkpoint layouts, as data.

Owns the table from stored names to the network's names, which are those of the transformers layout.
Knows no file and no shape. Invariant: a stored name is translated, dropped on purpose, or unknown.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from janus_core.config import Layout


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of the stored tensors whose whole name matches `pattern`.

    No target: dropped. One: taken as it is, after removing the leading axis of length 1 if
    `squeeze`. Several: cut into equal parts along the first axis, in the order of the targets.
    """

    pattern: str
    targets: tuple[str, ...]
    squeeze: bool = False


_SIGLIP_ATTENTION = r"model.vision_model.encoder.layers.\1.self_attn."
_DERIVED = Rule(r".*\.rotary_emb\.inv_freq", ())  # angles, stored by old versions of transformers

_ORIGINAL = (
    _DERIVED,
    Rule(r"language_model\.lm_head\.weight", ("lm_head.weight",)),
    Rule(r"language_model\.model\.(.+)", (r"model.language_model.\1",)),
    # SigLIP, as timm names it. The attention pool is not on Janus's path (ignore_head=True).
    Rule(r"vision_model\.vision_tower\.attn_pool\..+", ()),
    Rule(
        r"vision_model\.vision_tower\.patch_embed\.proj\.(.+)",
        (r"model.vision_model.embeddings.patch_embedding.\1",),
    ),
    Rule(
        r"vision_model\.vision_tower\.pos_embed",
        ("model.vision_model.embeddings.position_embedding.weight",),
        squeeze=True,
    ),
    Rule(
        r"vision_model\.vision_tower\.blocks\.(\d+)\.norm([12])\.(.+)",
        (r"model.vision_model.encoder.layers.\1.layer_norm\2.\3",),
    ),
    Rule(
        r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.(.+)",
        tuple(_SIGLIP_ATTENTION + rf"{part}_proj.\2" for part in "qkv"),
    ),
    Rule(
        r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.proj\.(.+)",
        (_SIGLIP_ATTENTION + r"projection_layer.\2",),
    ),
    Rule(
        r"vision_model\.vision_tower\.blocks\.(\d+)\.(mlp\.fc[12]\..+)",
        (r"model.vision_model.encoder.layers.\1.\2",),
    ),
    Rule(r"vision_model\.vision_tower\.norm\.(.+)", (r"model.vision_model.post_layernorm.\1",)),
    # Aligners: layers.0, GELU, layers.2, GELU, layers.4, ...
    Rule(r"aligner\.layers\.0\.(.+)", (r"model.aligner.fc1.\1",)),
    Rule(r"aligner\.layers\.(\d+)\.(.+)", (r"model.aligner.hidden_layers.<half>.\2",)),
    Rule(r"gen_aligner\.layers\.0\.(.+)", (r"model.generation_aligner.fc1.\1",)),
    Rule(
        r"gen_aligner\.layers\.(\d+)\.(.+)", (r"model.generation_aligner.hidden_layers.<half>.\2",)
    ),
    Rule(r"gen_embed\.weight", ("model.generation_embeddings.weight",)),
    Rule(r"gen_head\.output_mlp_projector\.(.+)", (r"model.generation_head.proj_out.\1",)),
    Rule(r"gen_head\.vision_head\.(.+)", (r"model.generation_head.vision_head.\1",)),
    # VQ-16. `codebook_used` is a statistic of its training.
    Rule(r"gen_vision_model\.quantize\.codebook_used", ()),
    Rule(
        r"gen_vision_model\.encoder\.conv_blocks\.(\d+)\.res\.(.+)",
        (r"model.vqmodel.encoder.down.\1.block.\2",),
    ),
    Rule(
        r"gen_vision_model\.encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..+)",
        (r"model.vqmodel.encoder.down.\1.\2",),
    ),
    Rule(
        r"gen_vision_model\.decoder\.conv_blocks\.(\d+)\.res\.(.+)",
        (r"model.vqmodel.decoder.up.\1.block.\2",),
    ),
    Rule(
        r"gen_vision_model\.decoder\.conv_blocks\.(\d+)\.((?:attn|upsample)\..+)",
        (r"model.vqmodel.decoder.up.\1.\2",),
    ),
    Rule(
        r"gen_vision_model\.(encoder|decoder)\.mid\.0\.(.+)",
        (r"model.vqmodel.\1.mid.block_1.\2",),
    ),
    Rule(
        r"gen_vision_model\.(encoder|decoder)\.mid\.1\.(.+)",
        (r"model.vqmodel.\1.mid.attn_1.\2",),
    ),
    Rule(
        r"gen_vision_model\.(encoder|decoder)\.mid\.2\.(.+)",
        (r"model.vqmodel.\1.mid.block_2.\2",),
    ),
    Rule(r"gen_vision_model\.(.+)", (r"model.vqmodel.\1",)),
)

_TRANSFORMERS = (_DERIVED, Rule(r"(.+)", (r"\1",)))

RULES: Mapping[Layout, tuple[Rule, ...]] = MappingProxyType(
    {"original": _ORIGINAL, "transformers": _TRANSFORMERS}
)


@dataclass(frozen=True, slots=True)
class Translation:
    """A rule applied to one stored name."""

    targets: tuple[str, ...]
    squeeze: bool

    def shapes(self, stored: tuple[int, ...]) -> list[tuple[int, ...]] | None:
        """Shapes of the targets, in order; None if a tensor of this shape cannot be cut so."""
        if not self.targets:
            return []
        if self.squeeze:
            return [stored[1:]] if stored[:1] == (1,) else None
        if len(self.targets) == 1:
            return [stored]
        rows, remainder = divmod(stored[0], len(self.targets)) if stored else (0, 1)
        return None if remainder else [(rows, *stored[1:])] * len(self.targets)


def translate(layout: Layout, name: str) -> Translation | None:
    """What becomes of the stored tensor `name`; None if no rule knows it."""
    for rule in RULES[layout]:
        match = re.fullmatch(rule.pattern, name)
        if match is None:
            continue
        targets = tuple(match.expand(target) for target in rule.targets)
        if any("<half>" in target for target in targets):
            # Every other layer of an aligner is a GELU: layers.2 -> hidden_layers.0.
            index, remainder = divmod(int(match[1]) - 2, 2)
            if remainder or index < 0:
                return None
            targets = tuple(target.replace("<half>", str(index)) for target in targets)
        return Translation(targets, rule.squeeze)
    return None
