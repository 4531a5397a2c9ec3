"""Apps written for Flower: their code in one piece, and the orders that carry their messages."""
