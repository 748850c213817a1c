"""Files to tiles: sources, decoding, shards, export and the synthetic corpus."""
