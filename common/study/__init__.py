"""What a study and a site's settings say, and what may not go together."""
