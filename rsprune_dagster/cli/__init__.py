"""The command line."""

from rsprune_dagster.cli.app import app, main

__all__ = ["app", "main"]
