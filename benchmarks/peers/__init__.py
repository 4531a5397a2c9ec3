"""consilium beside other libraries that train many sites in one process, on the same work."""
