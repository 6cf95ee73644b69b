"""Kernels for TPUs; only files directly in `ops` import them."""
