"""Apps and grids of Flower at the server."""
