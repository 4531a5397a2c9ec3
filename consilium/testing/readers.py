"""What every reader must hold: laws over data that its author writes, one function each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from consilium.client.data import UnscaledData, read_site
from consilium.common.study.load import parse_site, parse_study
from consilium.common.study.parts import offer_of, only, package_of

Written = tuple[Mapping[str, Any], Mapping[str, Any]]
Write = Callable[[Path], Written]
"""Writes at least 20 examples of every class into a folder; returns `[data]` of a site.toml and `[task]` of a study."""


def read(folder: Path, data: Mapping[str, Any], task: Mapping[str, Any]) -> UnscaledData:
    """Return the data as a site reads them."""
    unused = {"server": "localhost:1", "ca_certificate": "none", "private_key": "none", "state_dir": folder / "state"}
    offer = offer_of("readers", str(data["kind"]))
    parts = [package_of(offer).model_dump()] if offer is not None else []
    site = parse_site({"name": "here", **unused, "parts": parts, "data": dict(data)}, source="site.toml")
    study = parse_study({"name": "contract", "sites": ["here"], "task": dict(task)}, source="study.toml")
    with only(site.parts):
        return read_site(site, study)


def reads_the_same_twice(write: Write) -> None:
    """Two readings of the same files give the same examples in the same order, and the same digest."""
    with TemporaryDirectory() as name:
        data, task = write(Path(name))
        first, second = (read(Path(name), data, task) for _ in range(2))
        assert first.digest == second.digest
        one, other = first.scaled(None), second.scaled(None)
        assert torch.equal(one.train.x, other.train.x) and torch.equal(one.train.y, other.train.y)


def reads_what_a_model_takes(write: Write) -> None:
    """Finite float32 inputs of one shape, and labels as the task has them, in all three parts."""
    with TemporaryDirectory() as name:
        data, task = write(Path(name))
        examples = read(Path(name), data, task).scaled(None)
        classes = len(task.get("classes", ()))
        for part in (examples.train, examples.validation, examples.test):
            assert len(part) > 0
            assert part.x.dtype is torch.float32 and bool(torch.isfinite(part.x).all())
            assert part.x.shape[1:] == examples.train.x.shape[1:]
            assert part.y.dtype is (torch.int64 if classes else torch.float32)
            assert not classes or 0 <= int(part.y.min()) <= int(part.y.max()) < classes


LAWS: tuple[Callable[[Write], None], ...] = (reads_the_same_twice, reads_what_a_model_takes)
"""All laws; each takes a function that writes examples."""
