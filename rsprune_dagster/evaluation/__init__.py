"""Evaluation of samples: fidelity, coverage, scenes, memorization, leakage. No Dagster, MLflow or DVC."""
