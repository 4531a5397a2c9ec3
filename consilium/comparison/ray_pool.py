"""The cells of a comparison as tasks of Ray: in processes of this machine, or on the machines of a cluster."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from consilium.client.site.versions import versions
from consilium.common.errors import ConfigError, StateError, clean
from consilium.common.host.address import parse_address
from consilium.common.host.environment import environment
from consilium.common.host.files import write_atomically
from consilium.comparison.cells import Cell
from consilium.comparison.node import Delivery, run_on_node
from consilium.comparison.results import CellResult
from consilium.comparison.site_files import SiteFiles

LOCAL, AUTO, CLIENT = "local", "auto", "ray://"
"""Addresses apart from `host:port`: start Ray here; find the one of this machine; through its client's port."""
TRIES = 3
"""How often a cell is given out again whose machine or process was lost."""
MOST_WAITING = 1_000
"""Cells that Ray holds at a time, in its queue or running."""
STORE_BYTES = 200_000_000
"""Memory for results on their way, where Ray is started here."""
CONNECT_SECONDS = 5.0
OWN_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
"""Of a Ray that is started here: one thread each, no imports from the working directory, nothing sent to Ray's makers,
and studies are given as much of the machine as they are without Ray.
"""


def run_on_ray(
    todo: Mapping[Cell, str], sites: Mapping[str, SiteFiles], out: Path, *, address: str, jobs: int
) -> Iterator[tuple[Cell, CellResult]]:
    """Run cells as tasks, one processor each, and yield each with its result as it is there.

    A cell's files are written here, so that it counts as finished here, whatever becomes of the cluster. Law: results
    are those of `jobs = 1` on this machine, bit for bit, where the processors are of one kind.

    Args:
        todo: the cells, with their keys.
        address: `local`, `auto`, `host:port` or `ray://host:port`.
        jobs: how many processes an own Ray has.

    Raises:
        ConfigError: nothing answers at the address, or a machine has other data or versions.
        StateError: a cell's machines were lost again and again.
    """
    with connected(address, jobs) as ray:
        task = ray.remote(run_on_node).options(num_cpus=1, max_retries=TRIES)
        waiting, running, expected = iter(todo.items()), dict[Any, Cell](), versions()
        while True:
            for cell, key in islice(waiting, MOST_WAITING - len(running)):
                running[task.remote(cell, sites, key, expected)] = cell
            if not running:
                return
            for done in ray.wait(list(running), num_returns=1)[0]:
                cell = running.pop(done)
                yield cell, taken(_fetched(ray, done), todo[cell], out)


def taken(delivery: Delivery, key: str, out: Path) -> CellResult:
    """Write a cell's files, the result last, and return it.

    Raises:
        ConfigError: it could not be begun.
        StateError: `out` cannot be written.
    """
    if delivery.problem:
        raise ConfigError(delivery.problem)
    for suffix in (".safetensors", ".json"):
        if suffix in delivery.files:
            write_atomically(out / f"{key}{suffix}", delivery.files[suffix])
    return CellResult.model_validate_json(delivery.result)


def _fetched(ray: Any, done: Any) -> Delivery:
    try:
        delivery: Delivery = ray.get(done)
    except ray.exceptions.RayTaskError:  # an error of ours, which Ray gives the class that it had
        raise
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise StateError(
            f"Ray lost a study's process {TRIES + 1} times, or could not start it: {clean(str(error), 300)}; is "
            "consilium installed on every machine, with memory enough? What is finished is kept"
        ) from error
    return delivery


@contextmanager
def connected(address: str, jobs: int) -> Iterator[Any]:
    """Connect to Ray, or start it here, and leave or stop it at the end of the block.

    Raises:
        ConfigError: nothing answers, or another release or Python does.
    """
    import ray

    if ray.is_initialized():
        raise ConfigError("--ray: this process is connected to Ray already; call ray.shutdown() first")
    own = environment(**OWN_VARIABLES)
    with ExitStack() as stack:
        stack.enter_context(own)
        stack.enter_context(_own_signals())
        stack.callback(ray.shutdown)
        try:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if address == LOCAL:
                ray.init(LOCAL, num_cpus=jobs, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
            else:
                check_address(address)
                ray.init(address, **quiet)
        except ConfigError:
            raise
        except Exception as error:  # Ray has many, some of no class of their own
            raise ConfigError(f"--ray: no Ray can be used at '{address}': {clean(str(error), 300)}") from error
        yield ray


def check_address(address: str) -> None:
    """Check that an address can be one, and that something answers there.

    Raises:
        ConfigError: the sentence says which.
    """
    if address == AUTO:
        return
    place = parse_address(address.removeprefix(CLIENT), what="--ray")
    try:
        socket.create_connection((place.host, place.port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--ray: nothing answers at '{address}' ({error.strerror or error}): start it there with 'ray start "
            "--head', or say --ray local"
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what this process does at SIGTERM, which Ray changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
