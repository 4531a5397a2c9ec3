"""Helpers for programs that start other programs: free ports, parents that die."""

import os
import signal
import socket
import threading
import time

from common.errors import PortInUse

PARENT_VARIABLE = "CONSILIUM_PARENT_PID"


def free_port() -> int:
    """Return a TCP port on the loopback interface that nothing listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port_free(host: str, port: int, *, what: str) -> None:
    """Check that nothing listens on `host:port`.

    Raises:
        PortInUse: names the port and what it was for.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"{what}: port {port} on {host} cannot be used ({error.strerror}); choose another, or stop what uses it"
            ) from error


def follow_parent() -> None:
    """End this process (SIGTERM to itself) when the process named in CONSILIUM_PARENT_PID is gone.

    Without the variable nothing happens. This is how a demo that is killed outright leaves nothing behind.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent or os.getppid() != int(parent):
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
