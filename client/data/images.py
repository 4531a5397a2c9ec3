"""Reads a folder of image files with one sub-folder per class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.client.data.image_files import ImageFile, labelled_files
from consilium.client.data.parts import index_file, parts_in_file
from consilium.client.data.pictures import Pixels, decode, normalised
from consilium.common.data.groups import Ints, copies_of_pictures
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig, ImageFolderData
from consilium.common.study.task import ImageTask, Task
from consilium.common.study.training import SplitConfig


def read_images(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `<path>/<class>/<image file>`, in the order of the study's classes and of the file names.

    With `split.group = "folder"` a class has a sub-folder for each patient, with `split.parts = "folder"` the classes
    lie in folders called train, validation and test. A patient of one name in two classes is the same patient.

    An image becomes `(C, size, size)` float32: greyscale or RGB by the task's channels, resized
    (bilinear), scaled to 0..pixel_max, minus mean, divided by std. 16-bit greyscale is scaled by 65535.

    Raises:
        ConfigError: the study's task is not about images.
        DataError: no folder, an unknown class or part, no image, more than `max_skipped` corrupt files, or one that
            `split.group` or `split.parts` says nothing about.
    """
    if not (isinstance(config, ImageFolderData) and isinstance(task, ImageTask)):
        raise kind_mismatch(config, task, site=site)
    try:
        files = labelled_files(config.path, task, split, site=site)
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data folder '{config.path}': {error.strerror or error}") from error
    decoded = _decode_all(files, task, folder=config.path)
    usable, num_skipped = keep_usable(decoded, site=site, max_skipped=config.max_skipped)
    if not usable:
        raise DataError(f"site '{site}': no usable image in '{config.path}', {num_skipped} skipped as corrupt")
    x = torch.from_numpy(np.stack([pixels for pixels, _ in usable]))
    used = [place for _, place in usable]
    kept = [files[place] for place in used]
    return RawData(
        x=x,
        y=torch.tensor([file.label for file in kept], dtype=torch.int64),
        num_skipped=num_skipped,
        copies=copies_of_pictures(x.numpy()),
        patients=[file.patient or "" for file in kept] if split.group is not None else None,
        parts=_parts(files, used, config.path, split, site=site) if split.parts is not None else None,
    )


def _parts(files: Sequence[ImageFile], used: Sequence[int], folder: Path, split: SplitConfig, *, site: str) -> Ints:
    index = index_file(split.parts)
    if index is None:
        return np.array([files[place].part for place in used], dtype=np.int64)
    keys = [file.path.relative_to(folder).as_posix() for file in files]
    return parts_in_file(folder / index, keys, used, key="file", site=site)


def _decode_all(files: Sequence[ImageFile], task: ImageTask, *, folder: Path) -> Iterator[tuple[Pixels, int] | Bad]:
    """Yield each image with its place in `files`, or why it cannot be used."""
    for place, file in enumerate(files):
        pixels = decode(file.path, task, name=file.path.relative_to(folder).as_posix())
        if isinstance(pixels, Bad):
            yield pixels
        else:
            yield normalised(pixels, task), place
