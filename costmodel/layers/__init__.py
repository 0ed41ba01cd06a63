"""The rest of a block: projections, norms, embedding, head."""
