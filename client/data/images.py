"""Reads a folder of image files: with one sub-folder per class, or with a table that names each file's label."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.client.data.frames import NoPicture, Pixels, normalised
from consilium.client.data.image_files import ImageFile, labelled_files
from consilium.client.data.label_files import listing_of
from consilium.client.data.parts import index_file, parts_in_file
from consilium.client.data.picture_facts import PictureFacts
from consilium.client.data.picture_files import Tally, suffix_of
from consilium.client.data.pictures import decoded_pixels
from consilium.common.data.groups import Ints, copies_of_pictures
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig, ImageFolderData
from consilium.common.study.task import ImageTask, Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)


def read_images(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read `<path>/<class>/<image file>`, in the order of the study's classes and of the file names.

    With `split.group = "folder"` a class has a sub-folder for each patient, with `split.parts = "folder"` the classes
    lie in folders called train, validation and test. A patient of one name in two classes is the same patient. With
    `data.depth` files in deeper folders are read too. Slices of one volume are one patient's.

    Where the labels are not classes (`task.survival`), the table `data.labels` in the folder has a row for each
    picture, and they are read in the order of their names.

    An image becomes `(C, size, size)` float32: turned upright (EXIF), greyscale or RGB by the task's channels, resized
    (bilinear), scaled to 0..pixel_max, minus mean, divided by std; of more than 8 bits by `task.pixel_range`.

    Raises:
        ConfigError: the study's task is not about images.
        DataError: no folder, an unknown class or part, no image, more than `max_skipped` corrupt files, or one that
            `split.group` or `split.parts` says nothing about.
    """
    if not (isinstance(config, ImageFolderData) and isinstance(task, ImageTask)):
        raise kind_mismatch(config, task, site=site)
    try:
        listing = (labelled_files if task.classes else listing_of)(config, task, split, site=site)
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data folder '{config.path}': {error.strerror or error}") from error
    files, facts = listing.files, PictureFacts(task)
    decoded = _decode_all(files, task, facts, listing.tally, folder=config.path)
    usable, num_skipped = keep_usable(chain(listing.bad, decoded), site=site, max_skipped=config.max_skipped)
    if not usable:
        seen = listing.sentence(read=())
        raise DataError(
            f"site '{site}': no usable image in '{config.path}', {num_skipped} skipped as corrupt{seen and f'; {seen}'}"
        )
    x = torch.from_numpy(np.stack([pixels for pixels, _ in usable]))
    used = [place for _, place in usable]
    kept = [files[place] for place in used]
    what = listing.sentence(read=[files[place] for place in dict.fromkeys(used)])
    _log.info("pictures read site=%s reading=%s", site, what)
    odd = (*((what,) if listing.lacks_pictures else ()), *facts.odd())
    for sentence in odd:
        _log.warning("pictures look wrong site=%s what=%s", site, sentence)
    return RawData(
        x=x,
        y=torch.from_numpy(np.stack([np.asarray(file.label) for file in kept])).to(
            torch.int64 if task.classes else torch.float32
        ),
        num_skipped=num_skipped,
        copies=copies_of_pictures(x.numpy()),
        patients=_patients(files, used, config.path, split),
        parts=_parts(files, used, config.path, split, site=site) if split.parts is not None else None,
        reading=() if listing.lacks_pictures else (what,),
        seen=tuple(facts.seen()),
        odd=odd,
    )


def _patients(
    files: Sequence[ImageFile], used: Sequence[int], folder: Path, split: SplitConfig
) -> Sequence[str] | None:
    """Return whose each picture is; without `split.group` those of one file are one patient's."""
    if split.group is not None:
        return [files[place].patient or "" for place in used]
    if len(set(used)) == len(used):
        return None
    return [files[place].path.relative_to(folder).as_posix() for place in used]


def _parts(files: Sequence[ImageFile], used: Sequence[int], folder: Path, split: SplitConfig, *, site: str) -> Ints:
    index = index_file(split.parts)
    if index is None:
        return np.array([files[place].part for place in used], dtype=np.int64)
    keys = [file.path.relative_to(folder).as_posix() for file in files]
    return parts_in_file(folder / index, keys, used, key="file", site=site)


def _decode_all(
    files: Sequence[ImageFile], task: ImageTask, facts: PictureFacts, tally: Tally, *, folder: Path
) -> Iterator[tuple[Pixels, int] | Bad]:
    """Yield each image with its place in `files`, or why a file cannot be used; what is no picture is counted."""
    for place, file in enumerate(files):
        pixels = decoded_pixels(file.path, task, name=file.path.relative_to(folder).as_posix(), facts=facts)
        if isinstance(pixels, NoPicture):
            tally.empty[suffix_of(file.path)] += 1
        elif isinstance(pixels, Bad):
            yield pixels
        else:
            yield from ((normalised(one, task), place) for one in pixels)
