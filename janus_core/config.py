"""The geometry of a model, as its checkpoint states it.

Owns sizes; knows no weights, no tokenizer and no device. Invariant: nothing outside this module knows a
size of a particular checkpoint. Special token ids are not here: they are looked up by their string
(`janus_core/tokenizer.py`), because they differ between checkpoints of the same family.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """Llama decoder (`LlamaConfig` defaults are part of the checkpoint contract)."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    max_positions: int
    rms_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """SigLIP tower and its aligner."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_ratio: float
    aligner_depth: int = 2
    layer_norm_eps: float = 1e-6

    @property
    def num_image_tokens(self) -> int:
        """Embeddings per image: one per patch."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VqConfig:
    """VQ autoencoder, generation head, embedding and aligner."""

    codebook_size: int
    code_dim: int
    base_channels: int
    channel_multiplier: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int
    grid: int
    head_width: int
    aligner_depth: int = 2

    @property
    def num_codes(self) -> int:
        """Codes per picture, in raster order."""
        return self.grid**2

    @property
    def image_size(self) -> int:
        """Side of a drawn picture in pixels: one factor of two per level after the first."""
        return self.grid * 2 ** (len(self.channel_multiplier) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The whole model. Text ids are `[0, vocab_size)`, code `c` is id `vocab_size + c`."""

    backbone: BackboneConfig
    vision: VisionConfig
    vq: VqConfig

    @property
    def num_ids(self) -> int:
        """Size of the joint id space of words and codes."""
        return self.backbone.vocab_size + self.vq.codebook_size
