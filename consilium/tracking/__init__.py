"""A run's numbers in other people's tools: TensorBoard and MLflow, fed from the run's events and nothing else."""
