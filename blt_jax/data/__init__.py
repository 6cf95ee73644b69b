"""Host side: sources, entropies, packing."""
