"""Append-only event logs, and one record per event: what happens in a run, and at a site."""
