"""The geometry of a model, as its checkpoint states it.

Owns sizes and the reading of `config.json` in both layouts; knows no weights, no tokenizer and no
device. Invariant: nothing outside this module knows a size of a particular checkpoint. Special
token ids are not here: they are looked up by their string (`janus_core/tokenizer.py`), because they
differ between checkpoints of the same family.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from janus_core.errors import CheckpointError
from janus_core.strict_json import Section, read_object

Layout = Literal["original", "transformers"]
"""`deepseek-ai/*` has the original layout, `deepseek-community/*` the transformers layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """Llama decoder. `tied_head`: a missing `lm_head` is the embedding table."""

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
    tied_head: bool = False


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
        return self.grid << (len(self.channel_multiplier) - 1)


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


def read_config(directory: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint in either layout.

    Raises `CheckpointError`, naming the file and the field, if it is missing, malformed, of another
    model (JanusFlow and DeepSeek-VL share Janus's model_type) or of a variant the network does not
    have.
    """
    top = read_object(directory / "config.json")
    config = _original(top) if _layout(top) == "original" else _transformers(top)
    _check_consistency(top, config)
    return config


def read_layout(directory: Path) -> Layout:
    """The layout of the checkpoint; refuses other models as `read_config` does."""
    return _layout(read_object(directory / "config.json"))


def _layout(top: Section) -> Layout:
    model_type = top.values.get("model_type")
    if model_type == "janus":
        return "transformers"
    if model_type != "multi_modality":
        raise CheckpointError(
            f"{top.file} describes a {model_type!r} model. This server runs Janus and Janus-Pro: "
            "model_type 'janus' or 'multi_modality'."
        )
    if "vision_gen_enc_config" in top.values or "vision_und_enc_config" in top.values:
        raise CheckpointError(
            f"{top.file} describes JanusFlow, which draws by rectified flow instead of codes and "
            "is not supported. Use a Janus or Janus-Pro checkpoint."
        )
    if "gen_vision_config" not in top.values:
        raise CheckpointError(
            f"{top.file} describes DeepSeek-VL, which cannot draw (it has no gen_vision_config) "
            "and is not supported. Use a Janus or Janus-Pro checkpoint."
        )
    return "original"


def _original(top: Section) -> ModelConfig:
    """The layout of deepseek-ai's repositories: sub-configs with `cls` and `params`."""
    vision = top.section("vision_config").section("params")
    vision.only("model_name", "siglip_large_patch16_384")
    vision.only("select_layer", -1, default=-1)
    vision.only("select_feature", "same", default="same")
    vision.only("pixel_mean", None, default=None)
    vision.only("pixel_std", None, default=None)
    aligner = _original_aligner(top, "aligner_config")
    code_aligner = _original_aligner(top, "gen_aligner_config")
    vq = top.section("gen_vision_config").section("params")
    head = top.section("gen_head_config").section("params")
    backbone = _backbone(top.section("language_config"))
    for section in (aligner, code_aligner, head):
        section.only("n_embed", backbone.width)
    tower = VisionConfig(
        image_size=vision.integer("image_size", 384),
        patch_size=vision.integer("patch_size", 16),
        width=vision.integer("width", 1024),
        num_layers=vision.integer("layers", 24),
        num_heads=vision.integer("heads", 16),
        mlp_ratio=vision.number("mlp_ratio", 4.0),
        aligner_depth=aligner.integer("depth", 1),
    )
    # `VQ-16` fixes these in deepseek's code (janus/models/vq_model.py: ModelArgs, Encoder); a
    # checkpoint of another shape states them under the names they have there.
    multiplier = vq.integers("encoder_ch_mult", (1, 1, 2, 2, 4))
    autoencoder = VqConfig(
        codebook_size=vq.integer("image_token_size"),
        code_dim=vq.integer("n_embed"),
        base_channels=vq.integer("ch", 128),
        channel_multiplier=multiplier,
        num_res_blocks=vq.integer("num_res_blocks", 2),
        latent_channels=vq.integer("z_channels", 256),
        grid=tower.image_size // tower.patch_size,
        head_width=head.integer("image_token_embed"),
        aligner_depth=code_aligner.integer("depth", 1),
    )
    vq.only("decoder_ch_mult", list(multiplier), default=list(multiplier))
    head.only("image_token_size", autoencoder.codebook_size)
    aligner.only("input_dim", tower.width)
    code_aligner.only("input_dim", autoencoder.code_dim)
    return ModelConfig(backbone=backbone, vision=tower, vq=autoencoder)


def _original_aligner(top: Section, name: str) -> Section:
    params = top.section(name).section("params")
    params.only("projector_type", "mlp_gelu")
    return params


def _transformers(top: Section) -> ModelConfig:
    """The layout of deepseek-community's repositories; defaults of transformers' `JanusConfig`."""
    vision = top.section("vision_config")
    vision.only("hidden_act", "gelu", default="gelu")
    vision.only("attention_bias", True, default=True)
    vision.only("use_qk_norm", False, default=False)
    vision.only("num_channels", 3, default=3)
    vq = top.section("vq_config")
    vq.only("hidden_act", "gelu", default="gelu")
    vq.only("double_latent", False, default=False)
    vq.only("in_channels", 3, default=3)
    vq.only("out_channels", 3, default=3)
    tied = top.flag("tie_word_embeddings", default=True)
    backbone = _backbone(top.section("text_config"), tied_head=tied)
    vision.only("projection_dim", backbone.width, default=2048)
    vq.only("projection_dim", backbone.width, default=2048)
    vq.only("image_token_embed_dim", backbone.width, default=2048)
    tower = VisionConfig(
        image_size=vision.integer("image_size", 384),
        patch_size=vision.integer("patch_size", 16),
        width=vision.integer("hidden_size", 1024),
        num_layers=vision.integer("num_hidden_layers", 24),
        num_heads=vision.integer("num_attention_heads", 16),
        mlp_ratio=vision.number("mlp_ratio", 4.0),
        aligner_depth=vision.integer("depth", 2),
        layer_norm_eps=vision.number("layer_norm_eps", 1e-6),
    )
    autoencoder = VqConfig(
        codebook_size=vq.integer("num_embeddings", 16384),
        code_dim=vq.integer("embed_dim", 8),
        base_channels=vq.integer("base_channels", 128),
        channel_multiplier=vq.integers("channel_multiplier", (1, 1, 2, 2, 4)),
        num_res_blocks=vq.integer("num_res_blocks", 2),
        latent_channels=vq.integer("latent_channels", 256),
        # JanusConfig overrides vq_config.num_patches by this.
        grid=tower.image_size // tower.patch_size,
        head_width=vq.integer("projection_dim", 2048),
        aligner_depth=vq.integer("num_hidden_layers", 2),
    )
    return ModelConfig(backbone=backbone, vision=tower, vq=autoencoder)


def _backbone(text: Section, *, tied_head: bool = False) -> BackboneConfig:
    """A `LlamaConfig`; what the file leaves out is Llama's default (7B leaves out most)."""
    text.only("model_type", "llama", default="llama")
    text.only("hidden_act", "silu", default="silu")
    text.only("attention_bias", False, default=False)
    text.only("mlp_bias", False, default=False)
    width = text.integer("hidden_size", 4096)
    num_heads = text.integer("num_attention_heads", 32)
    return BackboneConfig(
        width=width,
        num_layers=text.integer("num_hidden_layers", 32),
        num_heads=num_heads,
        num_kv_heads=text.integer("num_key_value_heads", num_heads),
        head_dim=text.integer("head_dim", width // num_heads),
        mlp_width=text.integer("intermediate_size", 11008),
        vocab_size=text.integer("vocab_size", 32000),
        max_positions=text.integer("max_position_embeddings", 2048),
        rms_eps=text.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(text),
        tied_head=tied_head,
    )


def _rope_theta(text: Section) -> float:
    """Older files have `rope_theta` beside `rope_scaling`, newer ones both in `rope_parameters`."""
    text.only("rope_scaling", None, default=None)
    if text.values.get("rope_parameters") is None:
        return text.number("rope_theta", 10000.0)
    rope = text.section("rope_parameters")
    rope.only("rope_type", "default", default="default")
    return rope.number("rope_theta", 10000.0)


def _check_consistency(top: Section, config: ModelConfig) -> None:
    """Refuse sizes that no network can have, before anything is allocated by them."""
    backbone, vision, vq = config.backbone, config.vision, config.vq
    # GroupNorm(32, channels) in both implementations of the VQ autoencoder.
    num_groups = 32
    problems = {
        "the key/value heads must divide the heads": backbone.num_heads % backbone.num_kv_heads,
        "the head width must be even": backbone.head_dim % 2,
        "the patch size must divide the image size": vision.image_size % vision.patch_size,
        "the vision heads must divide the vision width": vision.width % vision.num_heads,
        f"the VQ channels must be a multiple of {num_groups}": vq.base_channels % num_groups,
    }
    for problem, remainder in problems.items():
        if remainder:
            raise top.error(f"the sizes are inconsistent, {problem}")
    top.section("vision_config").only(
        "num_image_tokens", vision.num_image_tokens, default=vision.num_image_tokens
    )
