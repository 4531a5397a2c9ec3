"""A model's weights as named arrays: what both sides do with them."""
