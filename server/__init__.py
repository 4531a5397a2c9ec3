"""The server: strategies, weightings, the round loop, and the programs that carry a study to its sites; no torch."""
