"""Attacks on what leaves a site, through the code that is deployed: how much they find, and how much by chance."""
