"""Kernels for NVIDIA GPUs in Pallas' Triton language; imported by files directly in ops."""
