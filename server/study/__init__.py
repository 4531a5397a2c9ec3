"""A study at the server: handshake, rounds, checks, checkpoints; it knows no carrier."""
