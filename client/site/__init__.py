"""A study at a site: its rounds, and what is kept between them; imports nothing that carries messages."""
