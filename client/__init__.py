"""A site: its data, its model, its personal weights, and the long-lived process that answers plans."""
