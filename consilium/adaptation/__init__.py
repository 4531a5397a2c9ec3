"""A site takes a finished model and adapts it to its own data."""
