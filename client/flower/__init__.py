"""Apps and messages of Flower at a site."""
