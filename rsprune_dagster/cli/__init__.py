"""The command line."""

from rsprune_dagster.cli.commands import app, main

__all__ = ["app", "main"]
