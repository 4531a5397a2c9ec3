"""The audit of a run: its log is whole, and its shares and weights follow from what the sites sent."""
