"""Bytes before each byte of a row, where documents are told apart and where they are not."""

from typing import Any

Array = Any  # np.ndarray or jax.Array


def check_documents(tokens: Array, document_ids: Array | None) -> None:
  """Raises ValueError unless documents int [B, S] have the shape of tokens."""
  if document_ids is not None and document_ids.shape != tokens.shape:
    raise ValueError(
      f"document_ids must have the shape of tokens, {tokens.shape}, got {document_ids.shape}."
    )


def look_back(xp: Any, tokens: Array, distance: int, document_ids: Array | None) -> Array:
  """Each byte's `distance`-th predecessor [B, S], 0 outside of its row or document."""

  def shift(x: Array) -> Array:
    return xp.pad(x, ((0, 0), (distance, 0)))[:, : x.shape[1]]

  if document_ids is None or distance == 0:
    return shift(tokens)
  return xp.where(shift(document_ids) == document_ids, shift(tokens), 0)
