"""Janus: both pathways around one backbone.

Owns the joint embedding table of words and codes, both heads, both aligners, and transformers'
SigLIP tower and VQ autoencoder. Knows no requests and no sampling. Invariant: id `vocab_size + c`
embeds code `c` exactly as `gen_aligner(gen_embed[c])` would.

Parameters are named as in the transformers layout (`destinations`), the only names this module
knows.

Shape suffixes: T packed tokens, R rows, I guided images, D model width, V text vocabulary, C
codebook, B images, S image slots (embeddings or codes of one image), E width of a code's vector, H
height, W width of a picture's latents.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVisionModel, JanusVQVAE

from janus_core.config import ModelConfig, VisionConfig, VqConfig
from janus_core.models.backbone import Backbone
from janus_core.models.heads import Aligner, GenerationHead
from janus_core.models.inputs import BatchInputs
from janus_core.models.kv_pool import KvPool
from janus_core.models.picture_decoder import (
    cpu_capabilities,
    decode_latents,
    fast_decoder_dtype,
    hasten_decoder,
)
from janus_core.ops.formats import PLAIN, Formats
from janus_core.ops.linear import can_pack, convert_linears, pack_linears
from janus_core.ops.torchao import quantize_linears


class JanusModel(nn.Module):
    """Starts as a `skeleton`; `janus_core.checkpoint.load_model` gives it memory and weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, vq = config.backbone.width, config.vq
        self.language_model = Backbone(config.backbone)
        self.embeddings = nn.Parameter(torch.empty(config.num_ids, width))
        self.lm_head = nn.Linear(width, config.backbone.vocab_size, bias=False)
        self.vision_model = JanusVisionModel(_vision_config(config.vision, width))
        self.aligner = Aligner(config.vision.width, width, depth=config.vision.aligner_depth)
        self.vqmodel = JanusVQVAE(_vq_config(vq))
        self.generation_embeddings = nn.Embedding(vq.codebook_size, vq.code_dim)
        self.generation_aligner = Aligner(vq.code_dim, width, depth=vq.aligner_depth)
        self.generation_head = GenerationHead(width, vq.head_width, codebook_size=vq.codebook_size)
        self.kv_dtype = torch.float32
        self.attention_choice = "auto"
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def skeleton(
        cls, config: ModelConfig, *, device: torch.device, dtype: torch.dtype
    ) -> "JanusModel":
        """Shapes without memory, in the dtypes for `device`; `to_empty` allocates them."""
        with torch.device("meta"):
            model = cls(config)
        model.to(dtype)
        model.vqmodel.to(vq_dtype(device, dtype))
        return model

    @torch.inference_mode()
    def finish_loading(self, formats: Formats = PLAIN) -> None:
        """Compute what follows from the weights: rotary table, code embeddings, unit codebook; then
        bring the linear layers into the format asked for.

        Call once, after the last tensor was read: linear layers may be packed here, and then the
        memory that `destinations` names is gone.
        """
        self.language_model.build_tables(device=self.device)
        embeddings = self.vision_model.embeddings
        embeddings.position_ids.copy_(torch.arange(embeddings.num_positions)[None])
        # Both the lookup and deepseek's nearest-neighbour search (janus/models/vq_model.py:
        # VectorQuantizer) use the normalised codebook; transformers' search takes it as it is.
        codebook = self.vqmodel.quantize.embedding.weight
        codebook.copy_(F.normalize(codebook.float(), dim=-1))
        for first in range(0, self.config.vq.codebook_size, 2048):
            # In pieces and in fp32: exact, and without a second table in memory.
            raw = self.generation_embeddings.weight[first : first + 2048].float()
            rows = slice(self.config.backbone.vocab_size + first, None)
            self.embeddings[rows][: len(raw)] = _apply_float(self.generation_aligner, raw)
        self.kv_dtype = formats.kv_dtype or self.dtype
        self.attention_choice = formats.attention
        self.language_model.convert(formats)
        if formats.weights is not None and formats.by_torchao:
            # What every step reads. The tower is rarely run, and its widths do not fit.
            parts = ("language_model", "lm_head", "generation_head")
            quantize_linears(self, format=formats.weights, parts=parts)
        elif formats.weights is not None:
            # All but the VQ autoencoder, and the aligner whose work is in the table.
            for name in ("lm_head", "vision_model", "aligner", "generation_head"):
                part = nn.ModuleDict({name: getattr(self, name)})
                convert_linears(part, format=formats.weights, native=formats.native)
                setattr(self, name, part[name])
            hasten_decoder(self.vqmodel, dtype=fast_decoder_dtype(cpu_capabilities()))
        if can_pack(device=self.device, dtype=self.dtype):
            pack_linears(self)
        if self.device.type == "cuda":
            # Pictures are decoded on other streams, which do not wait for this one.
            torch.cuda.synchronize(self.device)

    @property
    def device(self) -> torch.device:
        """Where all weights are."""
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, except the VQ autoencoder's (`vq_dtype`)."""
        return self.embeddings.dtype

    @torch.inference_mode()
    def encode_images(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, S, D]` of preprocessed images, for the places of their placeholders."""
        tower = self.vision_model
        # Not `tower(...)`: its forward also computes a pooled output that Janus has no use for.
        patches = tower.embeddings(pixels_BCHW.to(self.device, self.dtype))
        features = tower.post_layernorm(tower.encoder(patches).last_hidden_state)
        embeddings_BSD: torch.Tensor = self.aligner(features)
        return embeddings_BSD

    @torch.inference_mode()
    def forward(self, inputs: BatchInputs, kv: KvPool) -> torch.Tensor:
        """Hidden vectors `[T, D]` after the final norm; writes every row's keys and values."""
        x_TD = F.embedding(inputs.token_ids_T, self.embeddings)
        for first, embeddings_SD in inputs.image_embeddings:
            x_TD[first : first + len(embeddings_SD)] = embeddings_SD
        hidden_TD: torch.Tensor = self.language_model(x_TD, inputs, kv)
        return hidden_TD

    @torch.inference_mode()
    def text_logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits of the next word, fp32 `[R, V]`."""
        logits_RV: torch.Tensor = self.lm_head(hidden_RD)
        return logits_RV.float()

    @torch.inference_mode()
    def code_logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits of the next code, unguided, fp32 `[R, C]`."""
        logits_RC: torch.Tensor = self.generation_head(hidden_RD)
        return logits_RC

    @torch.inference_mode()
    def guided_code_logits(
        self, cond_ID: torch.Tensor, uncond_ID: torch.Tensor, guidance_I: torch.Tensor
    ) -> torch.Tensor:
        """Logits of the next code under guidance, fp32 `[I, C]`."""
        return self.generation_head.guided(cond_ID, uncond_ID, guidance_I)

    @torch.inference_mode()
    def decode_codes(self, codes_BS: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 `[B, height, width, 3]` of codes (int64, plain, in raster order).

        Clipped and truncated as deepseek's `generation_inference.py` does it.
        """
        vq, grid = self.vqmodel, self.config.vq.grid
        # Not `vq.decode(...)`: it would normalise the normalised codebook once more, and a level at
        # the edge of truncation could differ from the original's.
        latents_BSE = F.embedding(codes_BS.to(self.device), vq.quantize.embedding.weight)
        latents_BHWE = latents_BSE.view(len(codes_BS), grid, grid, -1)
        pixels_BCHW = decode_latents(vq, latents_BHWE.permute(0, 3, 1, 2).contiguous())
        levels = ((pixels_BCHW + 1) / 2 * 255).clamp(0, 255)
        return levels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()

    @torch.inference_mode()
    def encode_codes(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes int64 `[B, S]` of pictures in [-1, 1]: the inverse of `decode_codes`."""
        vq = self.vqmodel
        latents = vq.quant_conv(vq.encoder(pixels_BCHW.to(self.device, vq.quant_conv.weight.dtype)))
        codes: torch.Tensor = vq.quantize(latents)[2]
        return codes.view(len(pixels_BCHW), -1)

    def destinations(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name in the transformers layout and memory of every tensor a checkpoint must supply."""
        words = self.embeddings[: self.config.backbone.vocab_size]
        yield "model.language_model.embed_tokens.weight", words
        for name, view in self.language_model.destinations().items():
            yield f"model.language_model.{name}", view
        for name, parameter in self.named_parameters():
            if name.startswith("lm_head."):
                yield name, parameter
            elif name != "embeddings" and not name.startswith("language_model."):
                yield f"model.{name}", parameter


def vq_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Precision of the VQ autoencoder: bf16 where it is fast, else fp32.

    Never fp16: its attention scales after the product of queries and keys, which overflows.
    """
    return torch.bfloat16 if device.type == "cuda" and dtype == torch.bfloat16 else torch.float32


def _apply_float(aligner: Aligner, x: torch.Tensor) -> torch.Tensor:
    """The aligner in fp32 without converting it."""
    x = F.linear(x, aligner.fc1.weight.float(), aligner.fc1.bias.float())
    for layer in aligner.hidden_layers:
        assert isinstance(layer, nn.Linear)
        x = F.linear(F.gelu(x), layer.weight.float(), layer.bias.float())
    return x


def _vision_config(vision: VisionConfig, width: int) -> JanusVisionConfig:
    return JanusVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_size=vision.width,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        mlp_ratio=vision.mlp_ratio,
        layer_norm_eps=vision.layer_norm_eps,
        projection_dim=width,
        depth=vision.aligner_depth,
        num_image_tokens=vision.num_image_tokens,
        attn_implementation="sdpa",
    )


def _vq_config(vq: VqConfig) -> JanusVQVAEConfig:
    return JanusVQVAEConfig(
        num_embeddings=vq.codebook_size,
        embed_dim=vq.code_dim,
        base_channels=vq.base_channels,
        channel_multiplier=list(vq.channel_multiplier),
        num_res_blocks=vq.num_res_blocks,
        latent_channels=vq.latent_channels,
        num_patches=vq.grid,
    )
