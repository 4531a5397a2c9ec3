"""The documentation: pages in Markdown, how Sphinx builds them, and what writes the reference."""
