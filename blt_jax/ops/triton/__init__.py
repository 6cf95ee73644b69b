"""Kernels for NVIDIA GPUs in Pallas' Triton language; only files of `ops/` import them."""
