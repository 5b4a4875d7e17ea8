"""Train a cross-encoder on tables of the job's own contract."""
