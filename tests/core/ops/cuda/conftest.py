"""Kernels run on the GPU where there is one, and in Triton's interpreter elsewhere."""

import os

import torch

if not torch.cuda.is_available():
    # Read when the kernels are imported, which nothing but these tests does on a CPU.
    os.environ["TRITON_INTERPRET"] = "1"
