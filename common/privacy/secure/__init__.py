"""Sums over sites of which nobody sees a part: what sites and server agree on."""
