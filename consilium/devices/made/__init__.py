"""Users to try simulations with: made up, in three kinds of tasks, or taken from a file of rows with their users."""
