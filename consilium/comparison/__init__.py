"""`consilium compare`: every method on the same data, splits and seeds, beside honest baselines."""
