"""Sites that were away when a run ended get their row afterwards: only they are asked, for the same last weights."""

import time
from dataclasses import replace

from pydantic import ValidationError

from consilium.common.errors import ConfigError, SitesMissing, StateError
from consilium.common.events.run import FinishAsked, RunFinished
from consilium.common.host.files import sha256_of
from consilium.common.model.folder import RECORD
from consilium.common.protocol.plans import study_digest
from consilium.common.protocol.replies import FinishReply
from consilium.common.results import RunResult
from consilium.common.study.sentences import describe
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import load_newest
from consilium.server.study.context import Study
from consilium.server.study.finish import ask_for_results
from consilium.server.study.stopping import ending

LOOK_SECONDS = 0.2


def without_row(result: RunResult) -> tuple[str, ...]:
    """Return the sites that took part in a run and have no results, in sorted order."""
    return tuple(sorted(site for site, facts in result.sites.items() if facts.test is None))


def update_result(study: Study) -> RunResult:
    """Ask the sites without a row for their results, and write the result anew with those that came.

    Sites are waited for as long as at a start, `join_timeout_seconds`, until all of them have answered.

    Raises:
        ConfigError: all sites have their row.
        SitesMissing: none of the others came.
        StateError: the run has no result, or its last checkpoint is not that of its end.
    """
    result = _read(study)
    missing = without_row(result)
    if not missing:
        raise ConfigError(f"run '{study.run}': all sites have their row, so there is nobody to ask")
    state, study = _last_state(study, result), _as_it_was(study, result)
    study.folder.log(FinishAsked(round=state.round, sites=missing))
    replies, problems = _ask(study, state, missing)
    if not replies:
        why = "; ".join(sentence for _, sentence in sorted(problems.items())) or "none of them is connected"
        raise SitesMissing(f"run '{study.run}': no row came of {', '.join(missing)}: {why}")
    sites = {
        site: facts.model_copy(update={"test": replies[site].test, "privacy": replies[site].privacy})
        if site in replies
        else facts
        for site, facts in result.sites.items()
    }
    updated = result.model_copy(update={"sites": sites})
    study.folder.save_result(updated)
    spent = {site: facts.privacy for site, facts in sites.items() if facts.privacy is not None}
    written = sha256_of(study.folder.result), sha256_of(study.folder.model / RECORD)
    study.folder.log(RunFinished(seconds=result.seconds, privacy=spent, result=written[0], model=written[1]))
    return updated


def _ask(study: Study, state: ServerState, missing: tuple[str, ...]) -> tuple[dict[str, FinishReply], dict[str, str]]:
    """Ask each of some sites once it is connected; return the replies, and a sentence on each that is of no use."""
    replies: dict[str, FinishReply] = {}
    problems: dict[str, str] = {}
    deadline = time.monotonic() + study.config.join_timeout_seconds
    while time.monotonic() < deadline:
        here = study.exchange.connected() & set(missing) - replies.keys() - problems.keys()
        if here:
            problems |= ask_for_results(study, state, sorted(here), replies)[1]
        if len(replies) + len(problems) == len(missing):
            break
        time.sleep(LOOK_SECONDS)
    return replies, problems


def _read(study: Study) -> RunResult:
    path = study.folder.result
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StateError(f"run '{study.run}' has not ended: there is no '{path.name}' to put rows into") from error
    except ValidationError as error:
        raise StateError(describe(error, str(path))) from error


def _last_state(study: Study, result: RunResult) -> ServerState:
    """Return the state that the run ended with.

    Raises:
        StateError: it is not there any more; other weights would be another test.
    """
    state, _ = load_newest(study.folder.checkpoint, study_digest=study.digest)
    last = result.rounds[-1].round if result.rounds else 0
    if state.round != last:
        raise StateError(
            f"run '{study.run}' ended with round {last}, and its newest whole checkpoint is of round {state.round}: "
            "put the run's folder back from a backup"
        )
    return ending(state)


def _as_it_was(study: Study, result: RunResult) -> Study:
    """Return the study with the sites of its run, and what they announced."""
    return replace(
        study,
        train_sizes={site: facts.num_train for site, facts in result.sites.items()},
        test_sizes={site: facts.num_test for site, facts in result.sites.items()},
        site_digests={site: study_digest(study.config.seen_by(site)) for site in result.sites},
    )
