"""Host side: documents in, packed batches out."""
