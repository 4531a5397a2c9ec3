"""The server's side of the wire: the gRPC service, the runs' processes, the socket on which studies are submitted."""
