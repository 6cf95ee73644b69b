"""One update and all that it changes, as pure JAX without files."""
