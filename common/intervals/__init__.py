"""Intervals and p-values of shares, numbers and differences, for a site's own files and for every page alike."""
