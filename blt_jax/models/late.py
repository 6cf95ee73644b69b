"""Backward passes that begin when their turn comes: for CPUs.

What `jax.checkpoint` recomputes needs nothing of the gradient, so a CPU's schedule makes it
again early and keeps it. Memory is dear there: a step gets its own anew, zeroed page by page
at its first touch, which takes longer than most that is not a product.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def recomputed(function: Callable[..., jax.Array], policy: Any) -> Callable[..., jax.Array]:
  """`function` of trees of arrays with a backward pass that recomputes, no earlier than that.

  Args:
    function: gives one array. It has no gradient of second order then.
    policy: what the backward pass finds saved; see `jax.checkpoint_policies`.
  """
  run = jax.custom_vjp(lambda *args: function(*args))

  def forward(*args):
    leaves, tree = jax.tree.flatten(args)
    moving = [x.value if x.perturbed else None for x in leaves]

    def apply(moving):
      both = zip(moving, leaves, strict=True)
      return function(*jax.tree.unflatten(tree, [x.value if m is None else m for m, x in both]))

    output, pull = jax.vjp(jax.checkpoint(apply, prevent_cse=False, policy=policy), moving)
    return output, (pull, jax.tree.unflatten(tree, moving))

  def backward(residuals, cotangent):
    pull, moving = residuals
    inputs, tree = jax.tree.flatten(moving)
    gradients = _in_branch(lambda c: jax.tree.leaves(pull(c)), inputs, cotangent)
    return jax.tree.unflatten(tree, gradients)

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run


def _in_branch(differentiate, like, cotangent):
  """The gradients, of a branch that is always taken, which the compiler cannot know."""
  some = cotangent.ravel()[0]
  is_number_or_not = (some <= jnp.inf) | jnp.isnan(some)
  zeros = [jnp.zeros_like(x) for x in like]
  return jax.lax.cond(is_number_or_not, differentiate, lambda _: zeros, cotangent)
