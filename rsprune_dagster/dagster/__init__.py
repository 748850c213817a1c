"""Assets, checks, jobs, schedules and sensors: the wires between Dagster and the library."""
