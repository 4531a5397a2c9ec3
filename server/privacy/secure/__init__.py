"""Secure aggregation at the server: it adds what it cannot read, and learns the sum."""
