"""Numerics as plain functions of arrays."""
