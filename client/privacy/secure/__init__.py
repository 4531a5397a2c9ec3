"""Secure aggregation at a site: its keys, its masks, and what it reveals of them."""
