"""The demo: data, backbone, and a federation of processes or containers."""
