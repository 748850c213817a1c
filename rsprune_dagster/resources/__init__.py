"""All that touches the world: the asset store and the compute settings."""
