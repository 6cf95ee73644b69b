"""Comparisons of models at equal FLOPs: plans, their runs, and what comes out."""
