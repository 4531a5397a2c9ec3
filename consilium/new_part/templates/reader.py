"""my_part: reads signals from text files: on every line a class, then the signal's numbers, with blanks between."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import torch

from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.common.data.groups import copies_of_pictures
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig
from consilium.common.study.task import FeaturesTask, Task
from consilium.common.study.training import SplitConfig
from consilium.parts import DataSettings, Part


class MyPartSettings(DataSettings):
    """Text files of signals: `[data]` of a site.toml."""

    tasks: ClassVar[tuple[str, ...]] = ("features",)
    kind: Literal["my_part"] = "my_part"


def read(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read every `.txt` file under `path`, in the order of names and lines."""
    if not isinstance(task, FeaturesTask):
        raise kind_mismatch(config, task, site=site)
    if not (files := sorted(config.path.rglob("*.txt"))):
        raise DataError(f"site '{site}': no .txt file under '{config.path}'")
    rows, num_skipped = keep_usable(_rows(files, task), site=site, max_skipped=config.max_skipped)
    x = torch.tensor([numbers for _, numbers in rows]).reshape(-1, *task.shape)
    return RawData(x, torch.tensor([label for label, _ in rows]), num_skipped, copies_of_pictures(x.numpy()))


def _rows(files: list[Path], task: FeaturesTask) -> Iterator[tuple[int, list[float]] | Bad]:
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            label, *numbers = line.split() or [""]
            try:
                values = [float(text) for text in numbers]
                torch.tensor(values).reshape(task.shape)
                yield task.classes.index(label), values
            except (ValueError, RuntimeError):  # neither a class, nor numbers of the shape: say where, never what
                yield Bad(f"file '{file.name}', line {number}: expected a class and the numbers of a signal")


PART = Part(MyPartSettings, read)
