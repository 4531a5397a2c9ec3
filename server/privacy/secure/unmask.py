"""Taking the masks off a sum: sites open their shares, the server joins them, and learns the sum and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consilium.common.codecs import Payload
from consilium.common.errors import UpdateRejected, clean
from consilium.common.privacy.secure.masks import Words, add_mask
from consilium.common.privacy.secure.party import opened_shares, sign_of
from consilium.common.privacy.secure.shamir import SHARE_BYTES, factors, join
from consilium.common.privacy.secure.sizes import threshold
from consilium.common.protocol.plans import UnmaskPlan
from consilium.common.protocol.replies import FailureReply, UnmaskReply
from consilium.server.privacy.secure.attempts import Attempt
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer, ask
from consilium.server.study.hold import RoundShort
from consilium.server.study.record import Intake
from consilium.server.study.sentences import named, reasons

Sealed = Mapping[str, Sequence[bytes]]
"""What each site has sealed for each of the cohort, in its order."""


@dataclass(frozen=True)
class Split:
    """A round's cohort in two: those whose updates are in the sum, and those who have sent none."""

    cohort: tuple[str, ...]
    survivors: tuple[str, ...]

    @property
    def dropped(self) -> tuple[str, ...]:
        """The sites of the cohort that are not in the sum."""
        return tuple(name for name in self.cohort if name not in self.survivors)

    @property
    def opened(self) -> list[tuple[str, str]]:
        """The masks that are to be taken off, in the order in which sites open their shares."""
        return opened_shares(self.survivors, self.dropped)


def unmask(study: Study, attempt: Attempt, total: Words, sealed: Sealed, intake: Intake) -> None:
    """Take the masks off a sum, in place, with the shares of as many sites as it takes.

    Raises:
        RoundShort: too few sites have opened theirs.
        UpdateRejected: what they opened does not fit together.
    """
    assert attempt.survivors is not None
    split = Split(attempt.cohort, attempt.survivors)
    shares = _ask(study, attempt, split, sealed, intake)
    by = factors([split.cohort.index(site) + 1 for site in shares])
    for number, (name, other) in enumerate(split.opened):
        place = slice(number * SHARE_BYTES, (number + 1) * SHARE_BYTES)
        try:
            seed = join([text[place] for text in shares.values()], by)
        except ValueError as error:
            raise UpdateRejected(
                "sum", f"round {attempt.round}: what the sites opened of the masks does not fit together: {error}"
            ) from error
        add_mask(total, seed, sign=-1 if name == other else -sign_of(name, other))


def _ask(study: Study, attempt: Attempt, split: Split, sealed: Sealed, intake: Intake) -> dict[str, bytes]:
    """Return the shares of the first sites that answer, as many as it takes."""
    least, size = threshold(len(split.cohort)), SHARE_BYTES * len(split.opened)
    plans = {
        site: UnmaskPlan(
            study=study.site_digests[site],
            run=study.run,
            site=site,
            round=attempt.round,
            attempt=attempt.number,
            survivors=split.survivors,
        )
        for site in split.survivors
    }
    texts = {site: b"".join(sealed[sender][split.cohort.index(site)] for sender in split.survivors) for site in plans}
    found, problems, names = dict[str, bytes](), dict[str, str](), dict[str, str]()
    answers = ask(
        study.exchange, plans, instead=texts, timeout_seconds=study.config.round_timeout_seconds, most_bytes=size
    )
    for answer in answers:
        intake.bytes_up += answer.bytes_up
        intake.bytes_down += answer.bytes_down
        opened = _shares_of(answer, study, attempt, size)
        if isinstance(opened, str):
            problems[answer.site], names[answer.site] = opened, answer.problem or "unmask"
            continue
        found[answer.site] = bytes(opened)
        if len(found) == least:
            return found
    raise RoundShort(
        f"round {attempt.round}: {len(found)} of {len(plans)} sites have opened their shares of the masks, expected "
        f"{least}; {reasons(problems)}",
        names,
        usable=len(found),
        needed=least,
    )


def _shares_of(answer: Answer, study: Study, attempt: Attempt, size: int) -> Payload | str:
    """Return the shares in an answer, or a sentence on what is wrong with it."""
    reply, who = answer.reply, f"site '{answer.site}'"
    if answer.problem is not None:
        return named(answer.site, clean(answer.detail))
    if isinstance(reply, FailureReply):
        return f"{who} did not open its shares: {reply.message}"
    if not isinstance(reply, UnmaskReply) or (reply.run, reply.round, reply.attempt) != (
        *(study.run, attempt.round, attempt.number),
    ):
        return f"{who} answered another question than round {attempt.round}, attempt {attempt.number}"
    if answer.payload is None or len(answer.payload) != size:
        return f"{who} sent {len(answer.payload or b'')} bytes of shares, expected {size}"
    return answer.payload
