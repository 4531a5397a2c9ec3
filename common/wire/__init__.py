"""The wire between a hospital and its coordinator: its messages, its limits, and orders that the study signs."""
