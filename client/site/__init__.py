"""A study at a site: what a round does, what is kept; it knows no carrier."""
