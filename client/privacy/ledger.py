"""What a site has spent of its patients' privacy: written to the disk before anything leaves, and never taken back.

`privacy.jsonl` in the state folder has a line for everything drawn with noise (`ChainedLog`: no line can be changed or
left out). How far it had come is kept in two more places, `.privacy/anchor.json` and `privacy-head.json` of each run's
folder, each written after the line. So the ledger may be ahead of them after a crash, never behind: a ledger that is
lost, cut or put back to an earlier copy is noticed, and nothing is spent before people have looked at it.

One ledger counts for all runs, studies and servers of a site, since all of them see the same patients.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from consilium.client.privacy.entry import Drawn, Entry
from consilium.client.privacy.marks import ANCHOR, Marks
from consilium.common.errors import PrivacyBudgetSpent, StateError
from consilium.common.host.chained import ChainedLog, Head
from consilium.common.host.files import open_in
from consilium.common.privacy.accounting import Charge, epsilon_of, keeps_to
from consilium.common.study.sentences import describe

LEDGER = "privacy.jsonl"
"""File of the state folder."""
_LOCK = ".privacy/lock"


@dataclass(frozen=True)
class Limit:
    """How much may be spent.

    Args:
        delta: probability with which the bound may be missed, as the study has it here.
        study: largest epsilon of the study with this data, over all its runs; None: none is set.
        site: largest epsilon of everything that this site has ever answered, by its own policy; None: none is set.
        each_data: count `site` for each data set by itself, which is right only where no patient is in two of them.
    """

    delta: float
    study: float | None = None
    site: float | None = None
    each_data: bool = False


@dataclass(frozen=True)
class Spent:
    """What was spent, of a study with its data and of the whole site; epsilon is found when it is asked for.

    Args:
        charges: of the study, with this data.
        all_charges: of the whole site, or of this data where the limit counts each by itself.
        site_delta: the smallest delta of any of these: studies differ in it, and a sum holds for one.
    """

    charges: tuple[Charge, ...]
    all_charges: tuple[Charge, ...]
    site_delta: float
    limit: Limit

    @cached_property
    def epsilon(self) -> float:
        """What the study has cost the site, at the study's delta."""
        return epsilon_of(self.charges, self.limit.delta)

    @cached_property
    def site_epsilon(self) -> float:
        """What everything together has cost, at `site_delta`."""
        return epsilon_of(self.all_charges, self.site_delta)

    @property
    def left(self) -> float | None:
        """What remains of the study's budget; None where there is none."""
        return None if self.limit.study is None else max(0.0, self.limit.study - self.epsilon)

    @property
    def site_left(self) -> float | None:
        """What remains of the site's own budget; None where there is none."""
        return None if self.limit.site is None else max(0.0, self.limit.site - self.site_epsilon)


class PrivacyLedger:
    """The ledger of one site; several processes may use it at once."""

    def __init__(self, state_dir: Path, site: str, *, server: str = "") -> None:
        self._folder, self._site, self._server = state_dir, site, server
        self._log = ChainedLog(state_dir / LEDGER, what="privacy ledger")
        self._marks = Marks(state_dir)
        self._parsed: dict[str, Entry] = {}

    @classmethod
    def open(cls, state_dir: Path, site: str, *, server: str = "") -> "PrivacyLedger":
        """Return the ledger in a state folder, new where there is none yet; nothing is written.

        Args:
            server: to whom answers go, for the lines that are written.

        Raises:
            PrivacyBudgetSpent: it was lost, changed, cut or put back to an earlier copy.
        """
        ledger = cls(state_dir, site, server=server)
        ledger._read(ledger._marks.all())
        return ledger

    def entries(self) -> tuple[Entry, ...]:
        """Return all lines, the first one first.

        Raises:
            PrivacyBudgetSpent: the ledger was lost, changed, cut or put back.
        """
        return self._read(self._marks.all())[0]

    def head(self) -> Head:
        """Return how far the ledger has come.

        Raises:
            PrivacyBudgetSpent: the ledger was lost, changed, cut or put back.
        """
        return self._read(self._marks.all())[1]

    def spent(self, *, study: str, data: str, limit: Limit) -> Spent:
        """Return what a study has spent with this data, and the whole site.

        Raises:
            PrivacyBudgetSpent: the ledger was lost, changed, cut or put back.
        """
        return _spent(self.entries(), study=study, data=data, limit=limit)

    def charge(
        self,
        charges: Sequence[Charge],
        *,
        study: str,
        run: str,
        round: int,
        data: str,
        what: str,
        limit: Limit,
        key: str | None = None,
    ) -> Spent:
        """Write down what is about to leave, and return what is spent with it; it is on the disk when this returns.

        Args:
            round: 0 before the first.
            data: digest of the data that the numbers are about.
            what: leaves, in words.
            key: names the answer; a second charge of the same run, round, words and key is none. The caller sees to it
                that of all draws with one key no two leave the site.

        Raises:
            PrivacyBudgetSpent: it would cost more than is left, or the ledger was lost, changed, cut or put back;
                nothing is written, and nothing may leave.
            StateError: the folder is unwritable or the disk is full; nothing may leave.
        """
        entry = Entry(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            server=self._server,
            study=study,
            run=run,
            round=round,
            data=data,
            what=what,
            charges=tuple(Drawn(**asdict(one)) for one in charges),
            delta=limit.delta,
            budget=limit.study,
            site_budget=limit.site,
            key=key,
        )
        with self._locked():
            before, head = self._read(self._marks.anchors())
            if key is not None and any(_same(entry, old) for old in before):
                return _spent(before, study=study, data=data, limit=limit)
            after = _spent((*before, entry), study=study, data=data, limit=limit)
            self._check(entry, after, before)
            if head == Head():
                self._marks.put(head)
            self._marks.put(self._log.append(entry.model_dump(mode="json", exclude_defaults=True)), study, run)
            return after

    def _check(self, entry: Entry, after: Spent, before: Sequence[Entry]) -> None:
        limit, asked = after.limit, f"{entry.what} ({_moment(entry)})"
        if limit.study is not None and not keeps_to(limit.study, after.charges, limit.delta):
            spent = _spent(before, study=entry.study, data=entry.data, limit=limit).epsilon
            raise PrivacyBudgetSpent(
                f"site '{self._site}': study '{entry.study}' has spent epsilon {spent:.4g} of {limit.study:g} "
                f"with this data (delta {limit.delta:g}), and {asked} would bring it to {after.epsilon:.4g}: what was "
                "learned so far stays; to go on, the sites have to agree on a larger budget for their patients"
            )
        if limit.site is not None and not keeps_to(limit.site, after.all_charges, after.site_delta):
            # which a server may read: it gets no sums over other studies
            raise PrivacyBudgetSpent(
                f"site '{self._site}': {asked} would bring what it has spent over all studies above epsilon "
                f"{limit.site:g} (delta {after.site_delta:g}), the most that its own policy allows: 'consilium site "
                "privacy' says on what; only the site can allow more"
            )

    def _read(self, marks: Iterable[tuple[str, Head]]) -> tuple[tuple[Entry, ...], Head]:
        """Return all lines and the head.

        Args:
            marks: heads that the ledger went through, each with the file that says so; read before the ledger is.
        """
        known, entries, seen, head = list(marks), [], {Head()}, Head()
        try:
            for line, head in self._log.heads():
                entries.append(self._entry(line, head))
                seen.add(head)
        except (StateError, ValidationError) as error:
            source = f"line {len(entries) + 1}"
            raise self._unknown(
                describe(error, source) if isinstance(error, ValidationError) else str(error)
            ) from error
        for file, mark in known:
            if mark not in seen:
                raise self._unknown(f"'{file}' knows a line {mark.count} that is none of its {len(entries)}")
        if entries and not self._marks.anchors():  # it is written before the first line
            raise self._unknown(f"'{self._folder / ANCHOR}' is not there")
        return tuple(entries), head

    def _entry(self, line: Mapping[str, Any], head: Head) -> Entry:
        """Return a line's entry; one with the same SHA-256 was parsed before."""
        if (entry := self._parsed.get(head.sha256)) is None:
            entry = Entry.model_validate({k: v for k, v in line.items() if k not in ("number", "before")})
            self._parsed[head.sha256] = entry
        return entry

    def _unknown(self, seen: str) -> PrivacyBudgetSpent:
        return PrivacyBudgetSpent(
            f"site '{self._site}': the privacy ledger '{self._log.path}' was lost, changed, cut or put back, so nobody "
            f"knows what is left to spend ({seen}): put back its newest copy with all its lines; nothing leaves before"
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = open_in(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(f"cannot write '{self._folder / _LOCK}': {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _spent(entries: Sequence[Entry], *, study: str, data: str, limit: Limit) -> Spent:
    own = [entry for entry in entries if (entry.study, entry.data) == (study, data)]
    every = [entry for entry in entries if entry.data == data] if limit.each_data else list(entries)
    return Spent(
        charges=tuple(charge for entry in own for charge in entry.drawn),
        all_charges=tuple(charge for entry in every for charge in entry.drawn),
        site_delta=min((limit.delta, *(entry.delta for entry in every))),
        limit=limit,
    )


def _same(entry: Entry, old: Entry) -> bool:
    return (entry.run, entry.round, entry.what, entry.key) == (old.run, old.round, old.what, old.key)


def _moment(entry: Entry) -> str:
    return f"run '{entry.run}', round {entry.round}" if entry.round else f"run '{entry.run}', before its first round"
