"""How well masks fit: overlap and distance of the regions of a class, picture by picture."""
