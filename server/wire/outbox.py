"""A run's outgoing orders, signed and with growing numbers, and their payloads in files that the server reads."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.files import write_atomically
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import MAX_ORDER_BYTES, Kind, Order, payload_digest, sign_order
from consilium.common.wire.limits import SMALL_PAYLOAD_BYTES

_NUMBERS_AT_ONCE = 1_000_000


class Numbers:
    """Growing numbers for orders, across the processes of a run and independent of the clock.

    Args:
        file: where the numbers that may have been used are noted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next = self._end = _read_number(file)

    def take(self) -> int:
        """Return a number greater than all before it.

        Raises:
            StateError: the note cannot be written.
        """
        if self._next == self._end:
            self._end += _NUMBERS_AT_ONCE
            write_atomically(self._file, str(self._end).encode())
        self._next += 1
        return self._next


def _read_number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise StateError(f"cannot read '{file}', by which sites tell new orders from old ones: {error}") from error


@dataclass(frozen=True)
class Signer:
    """The parts that orders of a run are made with: its name, the study's key, and its numbers."""

    run: str
    key: Ed25519PrivateKey
    numbers: Numbers


@dataclass(eq=False)
class Parcel:
    """A payload that is ready to be sent, and how many tasks its file still serves.

    Args:
        file: of a large payload; `payload` is a small one.
    """

    payload: bytes
    size: int
    digest: bytes
    file: Path | None = None
    users: int = 0


class Outbox:
    """Makes tasks from a run's orders, and deletes their files once they are answered.

    Args:
        folder: where large payloads lie, shared with the server's process.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self._folder, self._signer = folder, signer
        self._parcels: dict[bytes, Parcel] = {}

    def prepare(self, payload: bytes | None) -> Parcel:
        """Hash a payload once for all sites that get it; a large one is written to a file.

        Raises:
            StateError: it cannot be written.
        """
        size, digest = len(payload or b""), payload_digest(payload)
        if payload is None or size <= SMALL_PAYLOAD_BYTES:
            return Parcel(payload or b"", size, digest)
        path = self._folder / f"sent-{secrets.token_hex(8)}"
        try:
            with path.open("xb") as file:
                file.write(payload)
        except OSError as error:
            raise StateError(f"cannot write the weights to '{self._folder}': {error.strerror or error}") from error
        return Parcel(b"", size, digest, path)

    def task(
        self, parcel: Parcel, *, site: str, kind: Kind, text: str, seconds: float, most_bytes: int, id: bytes = b""
    ) -> pb.Outgoing:
        """Return a signed task for one site.

        Args:
            seconds: for which its reply is waited for.
            most_bytes: the largest payload of a reply that can be of use.
            id: 16 random bytes; default: new ones.

        Raises:
            ConfigError: the order is longer than a site reads.
            StateError: its number cannot be noted.
        """
        identifier = id or secrets.token_bytes(16)
        order = Order(
            number=self._signer.numbers.take(),
            run=self._signer.run,
            site=site,
            kind=kind,
            text=text,
            payload_digest=parcel.digest,
            payload_size=parcel.size,
        )
        signed = sign_order(order, self._signer.key)
        if len(signed) > MAX_ORDER_BYTES:  # it would break the site's connection again and again
            raise ConfigError(f"an order for site '{site}' has {len(signed)} bytes, expected at most {MAX_ORDER_BYTES}")
        task = pb.Outgoing(
            id=identifier,
            site=site,
            order=signed,
            seconds=seconds,
            most_bytes=most_bytes,
        )
        if parcel.file is None:
            task.payload = parcel.payload
        else:
            task.file, task.payload_size = parcel.file.name, parcel.size
            parcel.users += 1
            self._parcels[identifier] = parcel
        return task

    def done(self, identifier: bytes) -> None:
        """Note that a task is over, and delete its payload if no other task needs it."""
        parcel = self._parcels.pop(identifier, None)
        if parcel is not None:
            parcel.users -= 1
            if not parcel.users and parcel.file is not None:
                parcel.file.unlink(missing_ok=True)

    def open_reply(self, identifier: bytes) -> IO[bytes]:
        """Return the file with the large payload of a reply; it has no name any more and belongs to the caller.

        Raises:
            StateError: it cannot be read.
        """
        path = self._folder / identifier.hex()
        try:
            file = path.open("rb")
            path.unlink()
        except OSError as error:
            raise StateError(f"cannot read a reply in '{self._folder}': {error.strerror or error}") from error
        return file

    def drop_reply(self, identifier: bytes) -> None:
        """Delete the payload of a reply that nobody waits for any more."""
        (self._folder / identifier.hex()).unlink(missing_ok=True)
