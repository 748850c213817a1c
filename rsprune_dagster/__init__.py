"""RS-Prune as a Dagster pipeline: cut a remote-sensing corpus to the tiles worth training on."""

__version__ = "0.1.0"
