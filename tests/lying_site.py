"""A site that lies, as a program: `python lying_site.py SITE.toml`; honest but for its updates.

What it sends is in a file `lie` next to its settings, read in every round: `1e30` for an update of nothing else,
`x-10` for its own times -10; without the file it is honest.
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilium.common.host.logs import start_log


def as_told(delta: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the update that the file asks for."""
    try:
        told = (folder / "lie").read_text(encoding="utf-8").strip()
    except OSError:
        return dict(delta)
    if told.startswith("x"):
        return {name: array * array.dtype.type(float(told[1:])) for name, array in delta.items()}
    return {name: np.full_like(array, float(told)) for name, array in delta.items()}


def work() -> None:
    """Be the worker: its arguments are those of `consilium.client.worker`."""
    from consilium.client import worker
    from consilium.client.site import round as played

    names, folder = vars(played), Path(sys.argv[1]).parent
    honest = names["subtract"]
    names["subtract"] = lambda after, before: as_told(honest(after, before), folder)
    worker.main()


def attend(settings: Path) -> None:
    """Be the site's process, with the worker above."""
    from consilium.client import node
    from consilium.client.process import supervisor
    from consilium.client.wire.probe import place_of
    from consilium.common.study.load import load_site

    start_log()
    supervisor.COMMAND = (sys.executable, __file__, "--worker")  # type: ignore[assignment] # it is longer
    asyncio.run(node._until_stopped(place_of(load_site(settings), settings)))


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        del sys.argv[1]
        work()
    else:
        attend(Path(sys.argv[1]))
