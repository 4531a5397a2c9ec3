"""What carries a study at the coordinator: the gRPC service, the runs, the socket on which studies are submitted."""
