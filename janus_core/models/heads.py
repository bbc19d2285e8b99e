"""The small networks around the backbone: aligners and the generation head.

Knows no sequences. Invariant: the generation head's last layer is affine, so guidance may be
applied before it (`guided`), which halves the head's work and is equal up to rounding.

Shape suffixes: R rows, I guided images, D model width, W inner width of the head, C codebook.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Aligner(nn.Module):
    """`depth` linear layers with exact GELU between them; maps embeddings to the model width."""

    def __init__(self, width_in: int, width_out: int, *, depth: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, width_out)
        self.hidden_layers = nn.ModuleList(
            nn.Linear(width_out, width_out) for _ in range(depth - 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., width_in]` to `[..., width_out]`."""
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(F.gelu(x))
        return x


class GenerationHead(nn.Module):
    """From hidden vectors to the logits of the codes."""

    def __init__(self, width: int, inner_width: int, *, codebook_size: int) -> None:
        super().__init__()
        self.proj_out = nn.Linear(width, inner_width)
        self.vision_head = nn.Linear(inner_width, codebook_size)

    def forward(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits in fp32, `[R, C]`."""
        logits_RC: torch.Tensor = self.vision_head(F.gelu(self.proj_out(hidden_RD)))
        return logits_RC.float()

    def guided(
        self, cond_ID: torch.Tensor, uncond_ID: torch.Tensor, guidance_I: torch.Tensor
    ) -> torch.Tensor:
        """`uncond + guidance * (cond - uncond)` of the logits, fp32 `[I, C]` (arXiv:2207.12598)."""
        inner = F.gelu(self.proj_out(torch.cat((cond_ID, uncond_ID)))).float()
        cond_IW, uncond_IW = inner.chunk(2)
        mixed_IW = uncond_IW + guidance_I.float()[:, None] * (cond_IW - uncond_IW)
        logits_IC: torch.Tensor = self.vision_head(mixed_IW.to(cond_ID.dtype))
        return logits_IC.float()
