"""Texts as the numbers of their tokens: bytes, characters, words, or the tokens of a pretrained model's file.

A token's number in `x` is one more than in its list, and 0 is padding, so that no model and no tokeniser has to say
which of its tokens stands for nothing. Numbers are whole and at most `MOST_IDS`, so that float32, in which all inputs
travel, holds them exactly.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError, ModelError, clean
from consilium.common.host.extras import missing
from consilium.common.study.task import Task
from consilium.common.study.text_task import CHARACTERS, ByteTokens, CharacterTokens, FileTokens, TextTask, WordTokens

TOKENIZER = "tokenizer.json"
"""Name of a tokeniser's file in a model's folder."""
MOST_BYTES = 64_000_000
"""Size of the largest file of a tokeniser that is read."""
Ids = npt.NDArray[np.float32]
Encode = Callable[[str], Sequence[int]]
"""`encode(text)` returns the numbers of a text's tokens, from 0 on."""

_WORD = re.compile(r"\w+|[^\w\s]")
_CHARACTERS = {"\n": 0, " ": 1} | {name: place for place, name in enumerate(CHARACTERS) if len(name) == 1}
_files: dict[str, bytes] = {}
"""Tokenisers' files that this process has read, by their SHA-256: what has a digest is the same wherever it lies."""


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, and its signs; blanks only divide them."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=200_000)
def bucket_of(word: str, buckets: int) -> int:
    """Return the number of a word, from 0 on: its SHA-256's first 8 bytes modulo `buckets`."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % buckets


def character_of(character: str) -> int:
    """Return the number of a character among `CHARACTERS`; the last is that of all others."""
    return _CHARACTERS.get(character, len(CHARACTERS) - 1)


def read_tokenizer(task: Task, *folders: Path | None, who: str) -> None:
    """Read the tokeniser's file that a task names, if it names one, from the first folder that has it.

    Args:
        folders: a site's `weights_dir`, where it lies as the study says, or a model's folder, as `TOKENIZER`.

    Raises:
        ModelError: no folder has it, or it is not the file whose sha256 the study pins.
    """
    tokens = task.tokens if isinstance(task, TextTask) else None
    if not isinstance(tokens, FileTokens) or tokens.sha256 in _files:
        return
    name = f"{who}: tokeniser '{tokens.file}'"
    for folder in folders:
        for path in () if folder is None else (folder / tokens.file, folder / TOKENIZER):
            if path.is_file():
                _files[tokens.sha256] = _pinned(path, tokens.sha256, who=name)
                return
    where = listed_folders(folders)
    raise ModelError(f"{name} is not {where}: put the file there, or name the folder (weights_dir, --weights-dir)")


def listed_folders(folders: Iterable[Path | None]) -> str:
    """Return where a file was looked for, in words."""
    known = [f"in '{clean(str(folder))}'" for folder in folders if folder is not None]
    return " or ".join(known) if known else "anywhere, as no folder of weights is named"


def tokenizer_file(task: Task) -> bytes | None:
    """Return the content of the tokeniser's file that a task names; None where it names none, or it was not read."""
    tokens = task.tokens if isinstance(task, TextTask) else None
    return _files.get(tokens.sha256) if isinstance(tokens, FileTokens) else None


def encoder_of(task: TextTask) -> Encode:
    """Return the function that divides texts as a task says.

    Raises:
        DataError: the task names a tokeniser's file that was not read before (`read_tokenizer`).
        ModelError: that file is damaged, or has other tokens than the study says.
        ConfigError: the package tokenizers is not installed.
    """
    match task.tokens:
        case ByteTokens():
            return lambda text: list(text.encode())
        case CharacterTokens():
            return lambda text: [character_of(one) for one in text]
        case WordTokens(buckets=buckets):
            return lambda text: [bucket_of(word, buckets) for word in words_of(text)]
        case FileTokens() as tokens:
            return _of_file(tokens, task.length)


def padded(ids: Sequence[Sequence[int]], length: int) -> Ids:
    """Return tokens' numbers as rows `(N, length)`: cut at `length`, each one more than it was, then zeros."""
    x = np.zeros((len(ids), length), dtype=np.float32)
    for row, own in enumerate(ids):
        x[row, : min(len(own), length)] = np.asarray(own[:length], dtype=np.float32) + 1
    return x


def _of_file(tokens: FileTokens, length: int) -> Encode:
    content = _files.get(tokens.sha256)
    who = f"tokeniser '{tokens.file}'"
    if content is None:
        raise DataError(f"{who} was not read: name the folder that it lies in (weights_dir, --weights-dir)")
    tokenizer = _loaded(content, who)
    if (size := tokenizer.get_vocab_size()) > tokens.size:
        raise ModelError(f"{who} has {size} tokens, the study says {tokens.size} (task.tokens.size)")
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)  # by its own rules, so that the end mark stays
    return lambda text: list(tokenizer.encode(text).ids)


def _loaded(content: bytes, who: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing(f"the {who}", "tokenizers") from error
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the parser raises bare exceptions
        raise ModelError(f"{who} is no {TOKENIZER}, or it is damaged") from error


def _pinned(path: Path, sha256: str, *, who: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{who}: cannot be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise ModelError(f"{who}: has more than {MOST_BYTES} bytes")
    if (seen := hashlib.sha256(content).hexdigest()) != sha256:
        raise ModelError(f"{who}: sha256 is {seen}, the study pins {sha256}")
    return content
