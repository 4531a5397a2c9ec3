"""`consilium demo`: a server and several hospitals as separate processes on this machine, end to end.

Built from what a real study uses: `consilium server start`, one `consilium site start` per hospital with
its own key, data and state folder, and the code behind `consilium run`.
"""

import _thread
import shutil
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console

from consilium.common.errors import ConsiliumError
from consilium.common.host.files import check_writable, write_atomically
from consilium.common.host.ports import free_port
from consilium.common.study.load import study_text
from consilium.demo.options import DemoOptions
from consilium.demo.processes import Processes, ended, running_server, running_sites, wait_for_server
from consilium.demo.scenario import (
    certify,
    check_model,
    make_federation,
    make_sites,
    make_studies,
    run_studies,
    weights_file,
)
from consilium.running.run import new_run_folder
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

if TYPE_CHECKING:
    from consilium.report.report import Report


def run_demo(options: DemoOptions, console: Console) -> "Report":
    """Run the demo and return the report; every process it started has ended when this returns or raises.

    Raises:
        ConsiliumError: what went wrong, with a sentence.
        KeyboardInterrupt: Ctrl-C.
    """
    began = time.monotonic()
    runs_were_there = options.runs.exists()
    check_writable(options.runs, what="the folder for runs")
    folder = new_run_folder(options.runs, options.data)
    folder.mkdir()
    folder.chmod(0o700)
    try:
        federation = make_federation(options, folder / "hospitals")
        given = weights_file(options, federation, console) if options.pretrained is not None else None
        # A wrong option is refused before anything starts.
        check_model(options, make_studies(options, federation, given).main)
    except ConsiliumError:
        shutil.rmtree(folder)
        if not runs_were_there:
            options.runs.rmdir()
        raise
    home = ServerHome(folder / "server")
    address = f"localhost:{free_port()}"
    console.print(f"consilium demo: {federation.title}", highlight=False)
    console.print(f"run folder: {folder}", highlight=False)
    with running_server(home, address, folder) as server:
        weights = weights_file(options, federation, console)
        studies = make_studies(options, federation, weights)
        sites = make_sites(folder / "hospitals", federation, address, weights)
        write_atomically(folder / "hospitals" / "study.toml", study_text(studies.main).encode())
        wait_for_server(home, server, folder)
        with Control(home) as control:
            certify(sites, home, lambda request, name: control.approve(request, name=name))
        with running_sites(sites) as processes:
            processes["the server"] = (server, folder / "server" / "server.log")
            with _Guard(processes):
                report = run_studies(studies, home, folder, console)
    console.print(f"everything took {time.monotonic() - began:.0f} s; all processes have ended", highlight=False)
    return report


class _Guard:
    """Interrupts the main thread when one of the processes ends by itself, so that the demo does not wait in vain."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            if any(process.poll() is not None for process, _ in self._processes.values()):
                _thread.interrupt_main()
                return

    def __enter__(self) -> "_Guard":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None:
            for who, (process, log) in self._processes.items():
                if process.poll() is not None:
                    raise ended(process, log, who)
