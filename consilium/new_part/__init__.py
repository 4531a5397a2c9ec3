"""A new package with a part of one's own, written from a template."""
