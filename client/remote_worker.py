"""A site's worker on another machine, started by a command such as Slurm's `srun`; else as worker.py.

It shares nothing with its supervisor but files: orders come and replies go as lines over the command's input and
output, and it ends when the input is closed. Before it says that it is ready it makes sure that it is alone, and that
the state folder is the one that the supervisor has locked: else a privacy ledger and personal weights would lie in two
places.
"""

import argparse
import fcntl
import os
import signal
import socket
import sys
from pathlib import Path

from consilium.client.process.supervisor import READY
from consilium.client.process.worker_ends import LineEnd, check_alone
from consilium.common.errors import ConsiliumError, StateError

LOCKS = "a file system with locks between machines (NFS 4; Lustre mounted with 'flock')"


def main() -> None:
    """Entry point of `python -m consilium.client.remote_worker SETTINGS`; errors are sentences."""
    parser = argparse.ArgumentParser(prog="python -m consilium.client.remote_worker")
    parser.add_argument("settings", type=Path)
    parser.add_argument("--lock", type=Path, required=True, help="the file that the supervisor has locked")
    parser.add_argument("--threads", type=int, default=1, help="how many threads training may use")
    parser.add_argument("--memory-mb", type=int, help="how much memory this process may allocate")
    arguments = parser.parse_args()
    try:
        check_alone(os.environ, sys.stdout.fileno())
        check_shared(arguments.settings, arguments.lock)
    except ConsiliumError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    end = _own_lines()
    end.when_closed(lambda: os.kill(os.getpid(), signal.SIGTERM))
    from consilium.client.worker import prepare, run_worker

    prepare(threads=arguments.threads, memory_mb=arguments.memory_mb)
    end.begin(READY)
    run_worker(arguments.settings, end)


def check_shared(settings: Path, lock: Path) -> None:
    """Check that this machine sees the site's files, and the lock that the supervisor holds on another one.

    Raises:
        StateError: it does not.
    """
    host = socket.gethostname()
    if not settings.is_file():
        raise StateError(f"'{host}' has no '{settings}': the site's folder must be on a file system that both share")
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError as error:
        raise StateError(
            f"'{host}' cannot open '{lock}' ({error.strerror}): state_dir must be on a file system that both share"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError as error:
        raise StateError(
            f"'{host}' cannot see whether '{lock}' is locked ({error.strerror}): state_dir must be on {LOCKS}"
        ) from error
    finally:
        os.close(descriptor)
    raise StateError(
        f"'{host}' does not see that '{lock}' is locked: state_dir must be the same folder on both machines, on {LOCKS}"
    )


def _own_lines() -> LineEnd:
    """Take the input and output for lines alone: what else reads gets nothing, and what else prints goes to the log."""
    source, target = os.dup(0), os.dup(1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return LineEnd(source, target)


if __name__ == "__main__":
    main()
