"""The wire between sites and server: its messages, its limits, and signed orders."""
