"""`consilium compare`: every method on the same data, splits and seeds, next to honest baselines."""
