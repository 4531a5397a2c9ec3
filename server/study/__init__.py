"""A study at the server: handshake, rounds, checks, checkpoints; imports nothing that carries messages."""
