"""Does pruning pay: the same training on other tiles, arm by arm and seed by seed."""
