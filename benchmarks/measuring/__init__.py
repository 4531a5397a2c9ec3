"""What the benchmarks of speed are made of: deployments to measure, what is read of processes, the table."""
