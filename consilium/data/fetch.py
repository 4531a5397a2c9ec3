"""Fetches public data from its official homes, and writes it as a pool of images or as a federation of real sites."""

import gzip
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from consilium.common.data.npz import Array
from consilium.common.errors import ConfigError, DataError
from consilium.data.download import Progress, PublicFile, bring
from consilium.data.files import write_images
from consilium.data.pool import PART, read_images, sha256_of
from consilium.data.table_pool import read_table

POOL = "pool.npz"
DOWNLOADS = "downloads"

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

_DIGITS = tuple(str(number) for number in range(10))
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR_RECORD = 1 + 3 * 32 * 32
_MAX_UNPACKED = 2**29
"""Most that a file may unpack to; none here needs half of it."""


@dataclass(frozen=True)
class Source:
    """A public data set: its files, what it is, and how `files folder, target folder` becomes what is kept."""

    about: str
    files: tuple[PublicFile, ...]
    make: Callable[[Path, Path], str]


def fetch(
    name: str,
    to: Path,
    *,
    source: Path | None = None,
    progress: Progress | None = None,
    sources: Mapping[str, Source] | None = None,
) -> str:
    """Fetch a public data set into the folder `to`; return a sentence about what lies there now.

    Files are kept in `to/downloads`, so that a second call downloads nothing.

    Args:
        source: take the files from this folder in place of the network; the checksums are the same.

    Raises:
        ConfigError: there is no such data set, or a package is missing here that it needs.
        DataError: a file cannot be downloaded or is not the expected one.
        StateError: `to` cannot be written.
    """
    known = SOURCES if sources is None else sources
    if name not in known:
        raise ConfigError(f"there is no public data set '{name}'; known: {', '.join(known)}")
    downloads = to / DOWNLOADS
    for file in known[name].files:
        bring(file, downloads, source=source, progress=progress)
    try:
        return known[name].make(downloads, to)
    except ImportError as error:
        raise ConfigError(
            f"'{name}' needs the package '{error.name}', which the server's image, for one, does not have; "
            "use the full installation"
        ) from error


# --- how files become a pool -----------------------------------------------------------------------


def _keep(
    to: Path, x: Array, y: Array, classes: tuple[str, ...], about: str, *, test: npt.NDArray[np.bool_] | None = None
) -> str:
    """Write a pool, with the array `part` where an official test set is known; return a sentence."""
    more = {} if test is None else {PART: np.where(test, "test", "train")}
    write_images(to / POOL, x, y.astype(np.int64), classes, **more)
    shape = "x".join(str(length) for length in x.shape[1:])
    return f"{to / POOL}: {len(x)} images of {shape} in {len(classes)} classes; {about}"


def _official(num_test: int) -> str:
    return f"the official training and test images together, and which {num_test} are the latter (array '{PART}')"


def _make_digits(files: Path, to: Path) -> str:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return _keep(to, x, labels, _DIGITS, "part of scikit-learn, nothing was downloaded")


def _make_cifar10(files: Path, to: Path) -> str:
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    wanted = {f"cifar-10-batches-bin/{name}": place for place, name in enumerate(names)}
    batches: dict[int, Array] = {}
    path = files / "cifar-10-binary.tar.gz"
    try:
        with tarfile.open(path, "r:gz") as archive:
            # Only these members are read, as bytes; nothing is unpacked onto the disk.
            for member in archive:
                stream = archive.extractfile(member) if member.name in wanted else None
                if stream is not None:
                    batches[wanted[member.name]] = _cifar_records(stream.read(min(member.size, _MAX_UNPACKED)))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be unpacked") from error
    if len(batches) < len(names):
        raise DataError(f"'{path}' has {len(batches)} of its {len(names)} batches")
    records = np.concatenate([batches[place] for place in range(len(names))])
    x = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    test = np.arange(len(x)) >= len(x) - len(batches[len(names) - 1])
    return _keep(to, x, records[:, 0], _CIFAR_CLASSES, _official(int(test.sum())), test=test)


def _cifar_records(content: bytes) -> Array:
    """Return `(N, 3073)` uint8: a label, then red, green and blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html)."""
    if len(content) % _CIFAR_RECORD != 0:
        raise DataError(f"a batch of CIFAR-10 has {len(content)} bytes, expected a multiple of {_CIFAR_RECORD}")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, _CIFAR_RECORD)


def _make_pneumonia(files: Path, to: Path) -> str:
    pool = read_images(files / "pneumoniamnist.npz", classes=("normal", "pneumonia"))
    about = f"the official training, validation and test images together, and which are the last (array '{PART}')"
    return _keep(to, pool.x, pool.y, pool.classes, about, test=pool.test)


def _make_mnist(files: Path, to: Path) -> str:
    return _make_idx(files, to, _DIGITS)


def _make_fashion(files: Path, to: Path) -> str:
    return _make_idx(files, to, _FASHION_CLASSES)


def _make_idx(files: Path, to: Path, classes: tuple[str, ...]) -> str:
    train, held_out = (_idx(files / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
    y = np.concatenate([_idx(files / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")])
    test = np.arange(len(train) + len(held_out)) >= len(train)
    return _keep(to, np.concatenate([train, held_out]), y, classes, _official(len(held_out)), test=test)


def _idx(path: Path) -> Array:
    """Return the bytes of an IDX file: two zeros, type 8, number of dimensions, big-endian lengths, then the data.

    Raises:
        DataError: it is no such file.
    """
    try:
        with gzip.open(path) as file:
            return _idx_array(file, path)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"'{path}' cannot be unpacked") from error


def _idx_array(file: BinaryIO | gzip.GzipFile, path: Path) -> Array:
    zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
    shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    size = math.prod(shape)
    if (zeros, kind) != (0, 8) or size > _MAX_UNPACKED:
        raise DataError(f"'{path}' is not an IDX file of bytes")
    content = file.read(size + 1)
    if len(content) != size:
        raise DataError(f"'{path}' does not hold the {size} bytes that it declares")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _make_heart(files: Path, to: Path) -> str:
    from consilium.data.division import class_counts
    from consilium.data.files import check_free, federation_texts, write_federation
    from consilium.data.sources import heart_disease_hospitals

    check_free(to)
    federation = heart_disease_hospitals(files, to)
    counts = {}
    for site, folder in federation.folders.items():
        pool = read_table(folder / "patients.csv", "disease")
        counts[site] = class_counts(pool.y, pool.classes)
    record = {
        "pool": "UCI Heart Disease",
        "pool_sha256": {site: sha256_of(files / f"processed.{site}.data") for site in counts},
        "settings": {"by": "hospital"},
    }
    write_federation(to, federation_texts("heart-disease", federation.task, counts, record=record), counts)
    return f"{to}: four hospitals, {', '.join(counts)}, with {to / 'study.toml'} to start from"


# --- the table -------------------------------------------------------------------------------------

# Addresses and checksums as others state them, independently of each other:
# heart disease: FLamby (owkin/FLamby, flamby/datasets/fed_heart_disease/dataset_creation_scripts/download.py);
# CIFAR-10, binary version: its own page, https://www.cs.toronto.edu/~kriz/cifar.html;
# PneumoniaMNIST: MedMNIST (MedMNIST/MedMNIST, medmnist/info.py), "url" and "MD5";
# MNIST: torchvision (pytorch/vision, torchvision/datasets/mnist.py, class MNIST: the first of its mirrors);
# Fashion-MNIST: torchvision (pytorch/vision, torchvision/datasets/mnist.py, class FashionMNIST) and its own README.
SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "heart-disease": Source(
            "UCI Heart Disease: 920 patients of four real hospitals, 13 features, disease or not (CC BY 4.0)",
            tuple(
                PublicFile(f"processed.{site}.data", f"{_UCI}processed.{site}.data", md5)
                for site, md5 in (
                    ("cleveland", "2d91a8ff69cfd9616aa47b59d6f843db"),
                    ("hungarian", "22e96bee155b5973568101c93b3705f6"),
                    ("switzerland", "9a87f7577310b3917730d06ba9349e20"),
                    ("va", "4249d03ca7711e84f4444768c9426170"),
                )
            ),
            _make_heart,
        ),
        "digits": Source(
            "1,797 handwritten digits of 8 x 8 pixels; part of scikit-learn, no download", (), _make_digits
        ),
        "cifar10": Source(
            "CIFAR-10: 60,000 colour photographs of 32 x 32 pixels, ten classes; a download of 170 MB",
            (
                PublicFile(
                    "cifar-10-binary.tar.gz",
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "c32a1d4ab5d03f1284b67883e8d87530",
                ),
            ),
            _make_cifar10,
        ),
        "pneumoniamnist": Source(
            "PneumoniaMNIST: 5,856 chest X-rays of 28 x 28 pixels, normal or pneumonia (CC BY 4.0); 4 MB",
            (
                PublicFile(
                    "pneumoniamnist.npz",
                    "https://zenodo.org/records/10519652/files/pneumoniamnist.npz",
                    "28209eda62fecd6e6a2d98b1501bb15f",
                ),
            ),
            _make_pneumonia,
        ),
        "mnist": Source(
            "MNIST: 70,000 handwritten digits of 28 x 28 pixels; 12 MB",
            tuple(
                PublicFile(name, f"{_MNIST}{name}", md5)
                for name, md5 in (
                    ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                    ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
                    ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
                    ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
                )
            ),
            _make_mnist,
        ),
        "fashion-mnist": Source(
            "Fashion-MNIST: 70,000 grey pictures of clothes of 28 x 28 pixels, ten classes (MIT); 31 MB",
            tuple(
                PublicFile(name, f"{_FASHION}{name}", md5)
                for name, md5 in (
                    ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                    ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
                    ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
                    ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
                )
            ),
            _make_fashion,
        ),
    }
)
