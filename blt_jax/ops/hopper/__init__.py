"""Kernels for Hopper GPUs (Pallas Mosaic GPU); only files directly in `ops` import them."""
