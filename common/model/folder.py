"""Writes and reads a model's folder.

It holds `model.json` (a `ModelRecord` with its own sha256), `weights.safetensors` and `MODEL_CARD.md`, and at a site
`training-summary.json`. `model.json` names the sha256 of arrays and summary and is written last. The card is for
people, who may add to it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from consilium.common.codecs import Payload, form_of
from consilium.common.codecs.container import parts
from consilium.common.errors import ModelError, StateError, clean
from consilium.common.host.files import write_atomically
from consilium.common.model.card import card_of
from consilium.common.model.record import ModelRecord
from consilium.common.study.sentences import describe
from consilium.common.weights.arrays import Array, Weights

FORMAT = 1
RECORD, WEIGHTS, CARD, SUMMARY = "model.json", "weights.safetensors", "MODEL_CARD.md", "training-summary.json"
TOKENIZER = "tokenizer.json"
"""Files of a model's folder."""
MAX_RECORD_BYTES = 64_000_000


def write_model(
    folder: Path,
    record: ModelRecord,
    weights: Weights,
    *,
    summary: bytes | None = None,
    tokenizer: bytes | None = None,
    mode: int = 0o600,
) -> ModelRecord:
    """Write a model's folder, its card too, and return its record with the digests of its files.

    Args:
        summary: the content of `training-summary.json`, which stays at the site.
        tokenizer: the content of `tokenizer.json`, of a model of texts that needs one.

    Raises:
        StateError: the folder is unwritable or the disk is full; there is then no `model.json`.
    """
    _remove(folder / RECORD)
    contents: dict[str, Iterator[Payload]] = {WEIGHTS: parts(weights, form_of(weights))}
    if summary is not None:
        contents[SUMMARY] = iter([summary])
    else:
        _remove(folder / SUMMARY)
    if tokenizer is not None:
        contents[TOKENIZER] = iter([tokenizer])
    files = {name: _write(folder / name, pieces, mode) for name, pieces in contents.items()}
    record = record.model_copy(update={"files": files})
    write_atomically(folder / CARD, card_of(record).encode(), mode=mode)
    _write_record(folder, record, mode=mode)
    return record


def write_record(folder: Path, record: ModelRecord, *, mode: int = 0o600) -> ModelRecord:
    """Write another record of the same arrays, and a card that says so unless people have changed it; return it.

    Raises:
        ModelError: the folder has no record that can be read.
        StateError: it cannot be written.
    """
    card, before = folder / CARD, card_of(read_record(folder)).encode()
    _write_record(folder, record, mode=mode)
    if not card.is_file() or card.read_bytes() == before:
        write_atomically(card, card_of(record).encode(), mode=mode)
    return record


def _write_record(folder: Path, record: ModelRecord, *, mode: int) -> None:
    values = record.model_dump(mode="json")
    content = json.dumps({**values, "sha256": _digest(values)}, indent=1, ensure_ascii=False).encode()
    write_atomically(folder / RECORD, content + b"\n", mode=mode)


def read_record(folder: Path) -> ModelRecord:
    """Return the record of a model's folder, whose other files are as it says.

    Raises:
        ModelError: there is none, it is damaged or changed, or of a format that this version does not know.
    """
    who = f"model '{folder}'"
    values = _values(folder, who)
    if (format_ := values.get("format")) != FORMAT:
        newer = isinstance(format_, int) and format_ > FORMAT
        advice = "a newer consilium wrote it: install that version" if newer else "it is no model of consilium"
        raise ModelError(f"{who}: its format is {clean(repr(format_), 40)}, this version reads {FORMAT}; {advice}")
    expected = values.pop("sha256", None)
    if expected != _digest(values):
        raise ModelError(f"{who}: {RECORD} is damaged, or was changed by hand: its sha256 is not what it says")
    try:
        record = ModelRecord.model_validate(values)
    except ValidationError as error:
        raise ModelError(describe(error, f"{who}: {RECORD}")) from error
    if WEIGHTS not in record.files:
        raise ModelError(f"{who}: {RECORD} does not say which {WEIGHTS} belongs to it")
    for name, sha256 in record.files.items():
        path = folder / name
        if name == SUMMARY and not path.exists():
            continue  # it may be taken out before the folder is handed on
        if _sha256(path, who) != sha256:
            raise ModelError(f"{who}: {name} is damaged, or of another model: its sha256 is not the one in {RECORD}")
    return record


def read_arrays(folder: Path) -> dict[str, Array]:
    """Return a model's arrays.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        return load((folder / WEIGHTS).read_bytes())
    except OSError as error:
        raise ModelError(f"model '{folder}': cannot read {WEIGHTS}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model '{folder}': {WEIGHTS} is no safetensors file: {clean(str(error), 200)}") from error


def _values(folder: Path, who: str) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        what = "there is no such folder" if not folder.is_dir() else f"the folder has no {RECORD}"
        raise ModelError(
            f"{who}: {what}; at a site models lie in state/STUDY/RUN/models, e.g. models/personal, and in a "
            "coordinator's run in model"
        )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECORD_BYTES + 1)
        if len(content) > MAX_RECORD_BYTES:
            raise ModelError(f"{who}: {RECORD} has more than {MAX_RECORD_BYTES} bytes")
        values = json.loads(content)
    except OSError as error:
        raise ModelError(f"{who}: cannot read {RECORD}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{who}: {RECORD} is no JSON, or it is damaged: {clean(str(error), 200)}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{who}: {RECORD} is no model's record")
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write(path: Path, pieces: Iterator[Payload], mode: int) -> str:
    sha = hashlib.sha256()

    def noted() -> Iterator[Payload]:
        for piece in pieces:
            sha.update(piece)
            yield piece

    write_atomically(path, noted(), mode=mode)
    return sha.hexdigest()


def _sha256(path: Path, who: str) -> str:
    if path.exists() and not path.is_file():
        raise ModelError(f"{who}: {path.name} is no ordinary file")  # a device or a pipe may have no end
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{who}: cannot read {path.name}: {error.strerror or error}") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"cannot write '{path}': {error.strerror or error}") from error
