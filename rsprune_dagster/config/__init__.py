"""params.yaml as validated models."""
