"""Is it good: fidelity, coverage, scenes, memorization, leakage. A library: no Dagster, MLflow or DVC."""
