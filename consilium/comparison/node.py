"""One cell of a comparison on a machine of a Ray cluster: checked first, then run in a folder of its own."""

import logging
import socket
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from consilium.client.data import keep_readings
from consilium.client.site.versions import versions
from consilium.common.errors import ConsiliumError
from consilium.common.protocol.cards import Versions
from consilium.comparison.cells import Cell, run_cell
from consilium.comparison.site_files import SiteFiles

_until_the_end = ExitStack()


@dataclass(frozen=True)
class Delivery:
    """What a machine sends back; plain values alone.

    Args:
        problem: why the cell could not be begun there; empty where it was.
        result: a CellResult, as JSON.
        files: the cell's files, by the ends of their names.
    """

    problem: str = ""
    result: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


def run_on_node(cell: Cell, sites: Mapping[str, SiteFiles], key: str, expected: Versions) -> Delivery:
    """Run a cell in a process of Ray, which says nothing and reads each file once for all of its cells."""
    logging.disable(logging.ERROR)  # a cell's error is in its result
    _until_the_end.enter_context(keep_readings())
    return run_here(cell, sites, key, expected)


def run_here(cell: Cell, sites: Mapping[str, SiteFiles], key: str, expected: Versions) -> Delivery:
    """Run a cell on this machine, if it has the same data and versions.

    Args:
        key: of the cell, as the machine knows it that has asked.
        expected: the versions there.
    """
    if problem := problem_here(cell, sites, key, expected):
        return Delivery(problem=problem)
    with tempfile.TemporaryDirectory(prefix="consilium-cell-") as name:
        result = run_cell(cell, sites, Path(name), key)
        files = {file.suffix: file.read_bytes() for file in Path(name).iterdir() if file.is_file()}
    return Delivery(result=result.model_dump_json(), files=files)


def problem_here(cell: Cell, sites: Mapping[str, SiteFiles], key: str, expected: Versions) -> str:
    """Return why a cell would give another result on this machine, as a sentence; empty where it would not."""
    host = socket.gethostname()
    for name, site in sites.items():
        for path in (site.path, site.test, site.weights_dir):
            if path is not None and not path.exists():
                return (
                    f"site '{name}': Ray's machine '{host}' has no '{path}'; every machine needs the data under the "
                    "same path, such as in a folder that they share"
                )
    here = versions()
    for of in ("python", "consilium", "torch", "torchvision", "flwr"):
        if getattr(here, of) != getattr(expected, of):
            return f"Ray's machine '{host}' has {of} {getattr(here, of)}, expected {getattr(expected, of)} as here"
    try:
        if cell.key(sites) == key:
            return ""
    except (ConsiliumError, OSError) as error:
        return f"Ray's machine '{host}': {error}"
    return (
        f"Ray's machine '{host}' has other files than this one under the same paths, by their names, sizes or times; "
        "every machine needs the same data, such as in a folder that they share"
    )
