"""From files to tiles: sources, decoding, shards, the synthetic corpus."""
