"""Versions: the run log, dvc.lock and DVC's cache, MLflow, and questions about them."""
