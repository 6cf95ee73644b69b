"""Flax Linen modules: parameters and wiring; the arithmetic is in `ops`."""
