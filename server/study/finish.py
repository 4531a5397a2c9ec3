"""The end of a study: every site gets the final weights and reads its test split, once."""

from collections.abc import Iterable

from consilium.common.codecs import Identity
from consilium.common.errors import CohortTooSmall, ProtocolError, clean
from consilium.common.events.run import AnswerRejected, FinishAsked
from consilium.common.host.files import write_atomically
from consilium.common.protocol.plans import FinishPlan
from consilium.common.protocol.replies import FailureReply, FinishReply
from consilium.common.segmentation.shown import FOLDER as SHOWN
from consilium.common.segmentation.shown import MOST_BYTES, shown_in
from consilium.server.strategies import ServerState
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer, ask
from consilium.server.study.hold import Hold
from consilium.server.study.sentences import reasons
from consilium.server.study.site_state import warn_of_state


def finish(study: Study, state: ServerState) -> dict[str, FinishReply]:
    """Send every site the final weights and return its reply, with the counts on its test split.

    A site that does not answer has no row in the report; below the quorum the run pauses until sites are back.

    Raises:
        CohortTooSmall: the quorum cannot be reached, or not within the study's limit.
    """
    sites, quorum = who_finishes(study)
    study.folder.log(FinishAsked(round=state.round, sites=tuple(sites)))
    hold, missing = Hold(study, state.round, quorum), tuple(sites)
    replies: dict[str, FinishReply] = {}
    while True:
        problems, sentences = ask_for_results(study, state, missing, replies)
        if len(replies) >= quorum:
            hold.over()
            return replies
        waits = hold.can_wait(problems, usable=len(replies))
        missing = hold.wait(problems, usable=len(replies)) if waits else ()
        if not missing:
            usable = f"only {len(replies)} of {len(sites)} sites reported test results"
            raise CohortTooSmall(f"{usable}; {reasons(sentences)}")


def who_finishes(study: Study) -> tuple[list[str], int]:
    """Return the sites that get the final weights, and how many of them must answer, at least one.

    Of groups it is who is connected; where nobody is, all that took part, so that the run waits for them.
    """
    sites = sorted(study.train_sizes)
    if not study.config.groups:
        return sites, min(study.quorum, len(sites))
    named = set(study.config.sites) & set(sites)
    there = study.exchange.connected()
    asked = [site for site in sites if site in named or site in there]
    return asked or sites, max(1, min(study.quorum, len(named)))


def ask_for_results(
    study: Study, state: ServerState, sites: Iterable[str], replies: dict[str, FinishReply]
) -> tuple[dict[str, str], dict[str, str]]:
    """Ask some sites, put their usable replies to the others, and return what is wrong: a short name and a sentence."""
    plans = {site: finish_plan(study, state, site) for site in sites}
    payload, timeout = Identity().encode(state.served), study.config.round_timeout_seconds
    most = MOST_BYTES if study.config.task.label_kind == "masks" else 0
    problems: dict[str, str] = {}
    sentences: dict[str, str] = {}
    absent = study.config.absent_seconds if study.config.groups else None  # a device that has gone may stay away
    for answer in ask(
        study.exchange, plans, payload=payload, timeout_seconds=timeout, most_bytes=most, absent_seconds=absent
    ):
        tested = checked(answer, study, round_number=state.round)
        if isinstance(tested, FinishReply):
            replies[answer.site] = tested
            keep_shown(study, answer)
            warn_of_state(study, tested)
            continue
        problems[answer.site], sentences[answer.site] = answer.problem or "finish", tested
        event = AnswerRejected(round=state.round, site=answer.site, reason="finish", message=tested)
        study.folder.log(event)
    return problems, sentences


def keep_shown(study: Study, answer: Answer) -> None:
    """Keep the test pictures that a site sends along, as pixels, for the report; or nothing of them.

    Raises:
        StateError: the run's folder cannot be written.
    """
    if answer.payload:
        path = study.folder.path / SHOWN / f"{answer.site}.rgb"
        write_atomically(path, bytes(answer.payload), mode=0o600)


def finish_plan(study: Study, state: ServerState, site: str) -> FinishPlan:
    """Return a site's plan for the finish."""
    return FinishPlan(
        study=study.site_digests[site],
        run=study.run,
        site=site,
        round=state.round,
        accepted=state.accepted.get(site),
        asked=state.asked.get(site, 0),
    )


def checked(answer: Answer, study: Study, *, round_number: int) -> FinishReply | str:
    """Return a site's reply with its counts on its test split, or a sentence on what is wrong with its answer."""
    reply = answer.reply
    if isinstance(reply, FailureReply):
        return reply.message or "an unexpected answer"
    if not isinstance(reply, FinishReply) or reply.run != study.run or reply.round != round_number:
        return clean(answer.detail) or "an unexpected answer"
    if reply.test.num_test > (most := study.test_sizes[answer.site]):
        return f"site '{answer.site}' tested {reply.test.num_test} examples, announced {most}"
    counted = study.config.task.counted
    if (reply.test.estimates is None) != counted:
        expected = "counts" if counted else "estimates of a score"
        return f"site '{answer.site}' sent other results than {expected}, as this study's task has"
    survival = study.config.task.survival_times
    if reply.test.brier is not None and (survival is None or survival.horizon is None):
        return f"site '{answer.site}' sent Brier scores, which this study without a horizon does not ask for"
    exact = study.config.privacy.examples is None and counted
    if exact and (reply.test.noise is not None or reply.test.personal is None):
        return f"site '{answer.site}' sent counts as of a private study, which this is not"
    return _problem_of_shown(answer, study) or reply


def _problem_of_shown(answer: Answer, study: Study) -> str | None:
    """Return what is wrong with the test pictures that a site sends along; None where there are none, too."""
    if not answer.payload:
        return None
    if study.config.task.label_kind != "masks":
        return f"site '{answer.site}' sent pictures with its results, which this study's task has not"
    try:
        shown_in(answer.payload)
    except ProtocolError as error:
        return f"site '{answer.site}': {error}"
    return None
