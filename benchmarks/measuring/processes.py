"""What Linux says of processes in /proc: memory, processor time, command lines."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def watching(server: int) -> Iterator[dict[str, float]]:
    """Watch the process of a server and its runs; at the end, how far their memory was above its idle size, in MB."""
    peak = {"anonymous": 0.0, "resident": 0.0}
    idle = [sum(sizes) for sizes in zip(*(memory_of(pid) or (0.0, 0.0) for pid in family(server)), strict=True)]
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            now = [memory_of(process) or (0.0, 0.0) for process in family(server)]
            for name, before, sizes in zip(peak, idle, zip(*now, strict=True), strict=True):
                peak[name] = max(peak[name], sum(sizes) - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def family(process: int) -> list[int]:
    """Return a process and its children."""
    with suppress(OSError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [process, *map(int, children)]
    return [process]


def memory_of(process: int) -> tuple[float, float] | None:
    """Return a process's memory in MB: what is its own, and with pages of files; None when it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in text.splitlines() if line.endswith("kB")}
    return sizes.get("RssAnon", 0.0) + sizes.get("RssShmem", 0.0), sizes.get("VmRSS", 0.0)


def processes_with(*parts: bytes) -> list[int]:
    """Return the processes that have all of these in their command lines."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes()
            if all(part in command for part in parts) and int(path.parent.name) != os.getpid():
                processes.append(int(path.parent.name))
    return processes


def cpu_seconds(processes: list[int]) -> float:
    """Return the processor time of some processes so far."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in processes)
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")
