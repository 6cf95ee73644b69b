"""Kernels for NVIDIA GPUs (Pallas Triton); only files directly in `ops` import them."""
