"""The coordinator: strategies, the round loop and the Flower ServerApp. Needs no torch."""
