"""What one step over decoding rows computes on CUDA: Triton kernels, and their twins in torch."""
