"""The end of a study: every site gets the final weights and reads its test split, once."""

from consilium.common.codecs import Identity
from consilium.common.errors import CohortTooSmall, clean
from consilium.common.events.run import AnswerRejected, FinishAsked
from consilium.common.protocol.plans import FinishPlan
from consilium.common.protocol.replies import FailureReply, FinishReply
from consilium.server.strategies import ServerState
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer
from consilium.server.study.sentences import reasons


def finish(study: Study, state: ServerState) -> dict[str, FinishReply]:
    """Send every site the final weights and return its reply, with the counts on its test split.

    Raises:
        CohortTooSmall: a site that does not answer has no row in the report; fewer than the quorum end the run.
    """
    sites = sorted(study.train_sizes)
    study.folder.log(FinishAsked(round=state.round, sites=tuple(sites)))
    plans = {site: finish_plan(study, state, site) for site in sites}
    payload, timeout = Identity().encode(state.served), study.config.round_timeout_seconds
    replies: dict[str, FinishReply] = {}
    problems: dict[str, str] = {}
    for answer in study.exchange.ask(plans, payload=payload, timeout_seconds=timeout):
        tested = checked(answer, study, round_number=state.round)
        if isinstance(tested, FinishReply):
            replies[answer.site] = tested
            continue
        problems[answer.site] = tested
        event = AnswerRejected(round=state.round, site=answer.site, reason="finish", message=tested)
        study.folder.log(event)
    if len(replies) < min(study.quorum, len(sites)):
        raise CohortTooSmall(f"only {len(replies)} of {len(sites)} sites reported test results; {reasons(problems)}")
    return replies


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
    exact = study.config.privacy.examples is None and counted
    if exact and (reply.test.noise is not None or reply.test.personal is None):
        return f"site '{answer.site}' sent counts as of a private study, which this is not"
    return reply
