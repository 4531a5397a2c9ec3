"""A site's side of the wire: the stream to the server, and the ledger of the orders that this site obeys."""
