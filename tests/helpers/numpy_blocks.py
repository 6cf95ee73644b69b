"""Transformer blocks in NumPy float64, dense, one row at a time, written from the papers."""

import numpy as np


def rms_norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def rotate(x, positions):
  """Rotates adjacent pairs of heads [S, N, H] by angles position / 10000^(2 i / H)."""
  size = x.shape[-1]
  angles = positions[:, None, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
  even, odd = x[..., 0::2], x[..., 1::2]
  turned = np.empty_like(x)
  turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
  turned[..., 1::2] = odd * np.cos(angles) + even * np.sin(angles)
  return turned


def block(params, x, visible, positions, num_heads):
  """A pre-norm block on x [S, D]; visible is bool [S, S], query by key."""

  def project(name):
    product = normed @ params["attention"][name]["kernel"]
    return product.reshape(len(x), num_heads, -1)

  normed = rms_norm(x, params["attention_norm"]["scale"])
  query, key = rotate(project("query"), positions), rotate(project("key"), positions)
  scores = np.einsum("qnh,knh->nqk", query, key) / np.sqrt(query.shape[-1])
  scores = np.where(visible, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum("nqk,knh->qnh", weights, project("value")).reshape(len(x), -1)
  x = x + mixed @ params["attention"]["output"]["kernel"]
  normed = rms_norm(x, params["mlp_norm"]["scale"])
  gate = normed @ params["mlp"]["gate"]["kernel"]
  hidden = gate / (1 + np.exp(-gate)) * (normed @ params["mlp"]["up"]["kernel"])
  return x + hidden @ params["mlp"]["down"]["kernel"]


def run_stack(params, x, visible, num_heads):
  """All blocks of a stack, whose parameters have a leading axis of layers."""
  layers = params["layers"]
  for i in range(len(layers["mlp_norm"]["scale"])):
    one = _pick(layers, i)
    x = block(one, x, visible, np.arange(len(x)), num_heads)
  return x


def causal(length, window=None):
  """bool [length, length]."""
  distance = np.arange(length)[:, None] - np.arange(length)
  return (distance >= 0) & (distance < (window or length))


def finish(params, x):
  """Norm and output: logits [S, V]."""
  return rms_norm(x, params["norm"]["scale"]) @ params["output"]["kernel"]


def _pick(tree, i):
  if isinstance(tree, dict):
    return {name: _pick(part, i) for name, part in tree.items()}
  return tree[i]
