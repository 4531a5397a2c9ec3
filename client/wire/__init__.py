"""What carries a study at a hospital: the stream to the coordinator, and the orders that this site obeys."""
