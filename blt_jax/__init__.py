"""Byte Latent Transformers (arXiv 2412.09871) in JAX."""
