"""Checks of the assets' folders: each returns a verdict with a sentence and figures."""
