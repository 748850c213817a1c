"""What Dagster runs: jobs."""
