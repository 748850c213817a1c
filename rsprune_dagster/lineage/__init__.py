"""Questions about versions: what made one, does it still match, how to bring it back, what changed between two."""
