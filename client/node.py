"""The program of a site: one small process that stays connected to the server, and one warm worker process.

`consilium site start` reads and checks the settings and then becomes this process, which needs neither torch nor
flwr nor the models of the settings: an idle site is small.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.client.process.attending import answer_orders
from consilium.client.process.supervisor import Worker
from consilium.client.wire.connection import Connection
from consilium.client.wire.place import Place
from consilium.common.errors import ConfigError, ConsiliumError, clean
from consilium.common.host.files import only_one, sweep

if TYPE_CHECKING:
    from consilium.common.study.site import SiteConfig

log = logging.getLogger(__name__)

PLACE_VARIABLE = "CONSILIUM_PLACE"


def start_site(path: Path, *, metrics: str | None = None) -> None:
    """Become the process of the site described by a `site.toml`, until it is stopped (SIGINT or SIGTERM).

    Args:
        metrics: `host:port` of the pages for monitoring in place of the settings' `metrics_address`; empty for none.

    Raises:
        ConfigError: the settings or `metrics` are wrong, or a certificate or key is missing.
    """
    from consilium.client.wire.probe import place_of
    from consilium.common.host.address import parse_address
    from consilium.common.host.parents import TOKEN_VARIABLE
    from consilium.common.study.load import load_site

    if metrics:
        parse_address(metrics, what="--metrics")
    config = load_site(path)
    _check_files(config, path)
    address = config.metrics_address if metrics is None else metrics
    place = place_of(config, path, metrics=address or "")
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    environment[PLACE_VARIABLE] = place.to_json()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", "consilium.client.node"], environment)


def _check_files(config: "SiteConfig", path: Path) -> None:
    for what, file in (
        ("private_key", config.private_key),
        ("ca_certificate", config.ca_certificate),
        ("certificate", config.certificate),
        ("study_key", config.study_key),
    ):
        if not file.is_file():
            mend = "'consilium site init' makes it" if what == "private_key" else "'consilium site accept' writes it"
            raise ConfigError(f"{what}: no such file '{file}'; {mend} ({path})")
    command = shlex.split(config.worker or "")
    if command and shutil.which(command[0]) is None:
        raise ConfigError(f"worker: this machine has no command '{clean(command[0], 80)}' ({path})")


async def run_site(place: Place) -> None:
    """Stay connected to the server and answer orders until cancelled.

    Raises:
        ConnectionRefused: this site's key was revoked.
        RunFailed: the worker dies again and again.
        PortInUse: the port for monitoring is taken.
        StateError: the same site runs already on this machine.
    """
    lock = (place.log.parent / ".lock").absolute()
    worker = Worker(
        str(place.settings), threads=place.threads, memory_mb=place.memory_mb, behind=place.worker, lock=lock
    )
    connection = Connection(place, worker)
    another = f"site '{place.name}' runs already on this machine, with the state in '{place.log.parent}'"
    with ExitStack() as stack:
        stack.enter_context(only_one(lock, otherwise=another))
        sweep(place.log.parent, depth=4)
        if place.metrics:
            from consilium.client.operations.pages import exporting

            def is_ready() -> bool:
                return connection.is_connected and worker.is_alive()

            stack.enter_context(exporting(place.name, place.log, place.metrics, is_ready=is_ready))
        gone = "the site's worker process ends again and again right after its start; its log says why"
        await answer_orders(connection, worker, gone=gone)


async def _until_stopped(place: Place) -> None:
    site = asyncio.ensure_future(run_site(place))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, site.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await site


def main() -> None:
    """Entry point of `python -m consilium.client.node`, which `start_site` becomes; errors are sentences."""
    from consilium.common.host.logs import start_log
    from consilium.common.host.parents import follow_parent

    start_log()
    follow_parent()
    place = Place.from_json(os.environ.pop(PLACE_VARIABLE))
    try:
        asyncio.run(_until_stopped(place))
    except ConsiliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
