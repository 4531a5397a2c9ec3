"""From raw data to one folder per site."""
