"""The VQ decoder in the form that is fastest on this CPU.

Owns the choice of precision and memory layout for `vqmodel.decoder`; knows neither codes nor the
codebook. Invariant: only the decoder changes. The encoder stays exact, because a code is an argmax
and a picture is not.

Channels last saves oneDNN's convolutions a reordering each; bf16 is four times as fast again where
the processor multiplies it itself (AVX-512 BF16, AMX), and many times slower where it does not.
Levels of a picture then differ from fp32's by one or two of 255.
"""

from collections.abc import Mapping

import torch
from transformers.models.janus.modeling_janus import JanusVQVAE


def fast_decoder_dtype(capabilities: Mapping[str, object]) -> torch.dtype:
    """The precision for a CPU with these `torch.cpu.get_capabilities()`."""
    has_bfloat16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


def cpu_capabilities() -> Mapping[str, object]:
    """What torch knows of this CPU; nothing, where it is too old to be asked."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    capabilities: Mapping[str, object] = {} if ask is None else ask()
    return capabilities


def hasten_decoder(vq: JanusVQVAE, *, dtype: torch.dtype) -> None:
    """Bring everything between the codebook and the pixels into `dtype`, channels last."""
    for part in (vq.post_quant_conv, vq.decoder):
        part.to(dtype=dtype, memory_format=torch.channels_last)


def decode_latents(vq: JanusVQVAE, latents_BEHW: torch.Tensor) -> torch.Tensor:
    """Pixels fp32 `[B, 3, height, width]`, about -1..1, in whatever form the decoder has."""
    # Not `post_quant_conv`: with a kernel of one pixel, both layouts are the same.
    weight = vq.decoder.conv_in.weight
    latents_BEHW = latents_BEHW.to(weight.dtype)
    if not weight.is_contiguous():
        latents_BEHW = latents_BEHW.contiguous(memory_format=torch.channels_last)
    pixels_BCHW: torch.Tensor = vq.decoder(vq.post_quant_conv(latents_BEHW))
    return pixels_BCHW.float()
