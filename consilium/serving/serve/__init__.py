"""`consilium serve`: a finished model answers over HTTP, on this machine alone unless a token and TLS protect it."""
