"""Read a file of weights as it comes: out of wrappers, and without what is no array.

Nothing is unpickled: files are safetensors, or read by torch with `weights_only=True`.
"""

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from consilium.common.errors import ModelError, clean, listed

PICKLED = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
"""Endings of files that torch writes; of these and `.safetensors` a file must have one."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
"""Names under which training scripts keep a model's arrays beside other things."""
MOST_WRAPPERS = 2
"""How deep arrays may lie in wrappers."""
_MOST_LISTED = 4
_MOST_PLACES = 16
# torchvision's densenet files say `denselayer1.norm.1.weight` where the model says `denselayer1.norm1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d+\.)")


@dataclass(frozen=True)
class Opened:
    """The named arrays of a file.

    Args:
        arrays: as they are in the file, by their names there.
        wrappers: the names under which they lay, from the outside in.
        aside: names of everything else in the file, which is not used.
    """

    arrays: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each thing that was done to find the arrays."""
        if self.wrappers:
            yield f"its arrays were found in {' > '.join(repr(name) for name in self.wrappers)}"
        if self.aside:
            yield f"also in the file, and ignored: {listed(self.aside, _MOST_LISTED)}"


def read_weights(path: Path, *, who: str, sha256: str | None) -> Opened:
    """Return the named arrays of a file, whatever it wraps them in; nothing is unpickled.

    Args:
        who: the file, for sentences.
        sha256: what its SHA-256 must be; None for any.

    Raises:
        ModelError: the file cannot be read, has another sha256 or ending, is damaged or pickled with code, or does not
            hold one set of named arrays.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{who}: cannot be read: {error.strerror or error}") from error
    if sha256 is not None and (seen := hashlib.sha256(content).hexdigest()) != sha256:
        raise ModelError(f"{who}: sha256 is {seen}, the study pins {sha256}")
    return opened(_parsed(content, path.suffix, who=who), who=who)


def _parsed(content: bytes, suffix: str, *, who: str) -> object:
    if suffix != ".safetensors" and suffix not in PICKLED:
        raise ModelError(f"{who}: must end in .safetensors, {', '.join(PICKLED)}, got '{clean(suffix, 40)}'")
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(content)
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > len(content):
                raise ModelError(f"{who}: unpacks to {unpacked} bytes from {len(content)}, which no file of torch does")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles before refusing them; the error below says so
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # on bytes from outside the parsers raise many kinds of errors
        code = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
        why = (
            f"it is pickled with code ('{code[1]}'), which is never run"
            if code
            else f"it is damaged, or pickled with code, which is never run ({type(error).__name__})"
        )
        raise ModelError(
            f"{who}: is not a plain weights file: {why}; save the state_dict alone, best as .safetensors"
        ) from error


def opened(content: object, *, who: str) -> Opened:
    """Return the named arrays in what a file holds: at the top, or in one wrapper or two.

    Raises:
        ModelError: there are none, or more than one set of them.
    """
    wrappers, aside = list[str](), list[str]()
    while isinstance(content, Mapping) and (inside := _wrappers_in(content)):
        if len(inside) > 1:
            raise ModelError(
                f"{who}: holds arrays under {' and under '.join(repr(name) for name in inside)}, so which are meant is "
                "a guess: save the right ones alone"
            )
        if len(wrappers) == MOST_WRAPPERS:
            path = " > ".join([*wrappers, *inside])
            raise ModelError(
                f"{who}: its arrays lie deeper than in {MOST_WRAPPERS} wrappers ({path}): save the state_dict alone"
            )
        aside += [_written(key) for key in content if key != inside[0]]
        wrappers += inside
        content = content[inside[0]]
    if not isinstance(content, Mapping):
        raise ModelError(f"{who}: holds {type(content).__name__}, expected named arrays")
    arrays = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    aside += [_written(key) for key in content if key not in arrays]
    if not arrays:
        raise ModelError(f"{who}: holds no named arrays{f', but {listed(aside, _MOST_LISTED)}' if aside else ''}")
    named = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in arrays.items()}
    return Opened(named, tuple(wrappers), tuple(aside))


def _wrappers_in(content: Mapping[object, object]) -> list[str]:
    """Return the wrappers in a mapping that lead to arrays."""
    return [name for name in WRAPPERS if _leads_to_arrays(content.get(name), MOST_WRAPPERS)]


def _leads_to_arrays(inside: object, depth: int) -> bool:
    if not isinstance(inside, Mapping):
        return False
    if any(isinstance(value, Tensor) for value in inside.values()):
        return True
    return depth > 0 and any(_leads_to_arrays(inside.get(name), depth - 1) for name in WRAPPERS)


def _written(key: object) -> str:
    return clean(key if isinstance(key, str) else f"{type(key).__name__} {key!r}"[:200], 100)
