"""A site's audit log, `audit.jsonl` of its state folder: one line for each order that the study's key signed.

Each line holds the head of the lines before it, signed with the site's own key, and the newest signed head leaves with
the reply; so neither the site nor whoever gets at its disk can change, cut or put back the log unseen by the server.
It needs no pydantic: the process that talks to the server writes what it refuses by itself.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.audit_heads import is_signed, sign_head
from consilium.common.host.chained import ChainedLog, Head
from consilium.common.host.keys import UNREADABLE, accepted_key, openssh

FILE = "audit.jsonl"
"""File of the state folder."""
OBEYED, NEW_KEY = "ok", "key"
"""The answer to an order that was obeyed, else it is the class of an error; and that of a line that is of no order."""
MOST_REFUSALS = 100
"""How many refusals are written down in an hour; more are only counted, in the line after them."""
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class SignedHead:
    """A head with the site's signature."""

    count: int
    sha256: str
    signature: str

    @property
    def head(self) -> Head:
        """The head without its signature."""
        return Head(self.count, self.sha256)


class AuditLog:
    """The log in one state folder, to be added to.

    Raises:
        StateError: the log was changed, or cannot be read.
    """

    def __init__(self, state_dir: Path, *, site: str, key: ec.EllipticCurvePrivateKey) -> None:
        self._log = ChainedLog(state_dir / FILE, what=f"audit log of site '{site}'")
        self._site, self._key = site, key
        self._obeyed, self._refused = deque[datetime](), deque[datetime]()
        self._uncounted, self._last = 0, SignedHead(0, Head().sha256, "")
        self._public, self._written_key = openssh(key.public_key()), ""
        for entry, head in self._log.heads():
            self._count(str(entry.get("answer")), _time_of(entry))
            self._last = SignedHead(head.count, head.sha256, "")
            self._written_key = str(entry.get("key", self._written_key))
        self._forget_old()
        if self._last.count:
            self._last = self._signed(self._last.head)

    def obeyed(self) -> int:
        """Return how many orders were obeyed within the last hour."""
        self._forget_old()
        return len(self._obeyed)

    def holds(self, head: Head) -> bool:
        """Return whether the log went through this head.

        Raises:
            StateError: a line was changed.
        """
        return self._log.holds(head)

    def note(self, answer: str, entry: Mapping[str, Any]) -> SignedHead | None:
        """Write a line and return the new head; None for one refusal of too many, which is only counted.

        Args:
            answer: `OBEYED`, `NEW_KEY`, or the class of the error.

        Raises:
            StateError: the log was changed, the folder is unwritable or the disk is full; nothing may leave then.
        """
        now = datetime.now(UTC)
        self._forget_old()
        if answer not in (OBEYED, NEW_KEY) and len(self._refused) >= MOST_REFUSALS:
            self._uncounted += 1
            return None
        line: dict[str, Any] = {"time": now.isoformat(timespec="milliseconds"), "answer": answer, **entry}
        if not self._last.count and (head := self._log.head()).count:  # another process wrote the first lines
            self._last = self._signed(head)
        if self._uncounted:
            line["refusals_before"] = self._uncounted
        if self._last.count:
            line["signed"] = asdict(self._last)
        if self._written_key != self._public:
            line["key"] = self._public
        self._last = self._signed(self._log.append(line))
        self._uncounted, self._written_key = 0, self._public
        self._count(answer, now)
        return self._last

    def _count(self, answer: str, time: datetime) -> None:
        if answer != NEW_KEY:
            (self._obeyed if answer == OBEYED else self._refused).append(time)

    def _signed(self, head: Head) -> SignedHead:
        return SignedHead(head.count, head.sha256, sign_head(head, site=self._site, key=self._key))

    def _forget_old(self) -> None:
        now = datetime.now(UTC)
        for times in (self._obeyed, self._refused):
            kept = [min(time, now) for time in times if time >= now - HOUR]  # what a fast clock dated later is of now
            times.clear()
            times.extend(kept)


def verified(path: Path, *, site: str, keys: Collection[str]) -> Iterator[tuple[Head, str]]:
    """Yield the head after every line of an audit log, and the key that signs it; each line is checked.

    Args:
        keys: all public keys that the site has had, in OpenSSH form; empty: any key that the log names is taken.

    Raises:
        StateError: a line was changed, left out or added, or a head in it is not one of the log's, or not signed with
            the key that the log names; names the line.
    """
    heads, key = {Head()}, ""
    for entry, head in ChainedLog(path, what=f"audit log of site '{site}'").heads():
        signed, where = _signed_in(entry), f"audit log of site '{site}' '{path}', line {head.count}"
        key = str(entry.get("key", key))
        if keys and key not in keys:
            raise StateError(f"{where}: it is signed with a key that site '{site}' never had")
        if head.count > 1 and (signed is None or signed.head not in heads):
            raise StateError(f"{where}: it signs none of the lines before it")
        if signed is not None and not is_signed(signed.head, signed.signature, site=site, key=_key_of(key, where)):
            raise StateError(f"{where}: the head of the lines before it is not signed with the site's key")
        heads.add(head)
        yield head, key


def _key_of(line: str, where: str) -> ec.EllipticCurvePublicKey:
    try:
        return accepted_key(serialization.load_ssh_public_key(line.encode()), who=where)
    except (*UNREADABLE, ConfigError) as error:
        raise StateError(f"{where}: the log names no key that it is signed with") from error


def _signed_in(entry: Mapping[str, Any]) -> SignedHead | None:
    try:
        return SignedHead(**entry["signed"])
    except (KeyError, TypeError):
        return None


def _time_of(entry: Mapping[str, Any]) -> datetime:
    try:
        time = datetime.fromisoformat(entry["time"])
    except (KeyError, TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
