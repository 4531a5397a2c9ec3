"""The scale of a run's inputs: agreed on once, from the sums that the sites share in the handshake.

The scale is written to the run's folder before it is sent to any site: a run that is resumed goes on with it, whichever
sites are there by then.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.twice import read_twice, write_twice
from consilium.common.protocol.plans import study_digest
from consilium.common.protocol.replies import HandshakeReply
from consilium.common.results import ScaleFacts
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record
from consilium.common.study.scale import LEAST_ROWS, MOST_ALONE, ColumnScale, Scale, combine, joined
from consilium.common.study.sentences import describe
from consilium.common.study.study import StudyConfig


class AgreedScale(Record):
    """The scale of a run's inputs, where the study leaves it to the handshake.

    Args:
        study: digest of the study.
        scale: of all sites; None where every site scales by its own training rows.
        why_not: a sentence that says why there is no scale of all sites; None where there is one.
    """

    study: Sha256
    scale: Scale | None
    why_not: str | None = None


def agree_on_scale(study: StudyConfig, replies: Mapping[str, HandshakeReply]) -> AgreedScale:
    """Return the scale over the rows of all sites; none where a site keeps its sums to itself, or has too few rows.

    Raises:
        ConfigError: there is none, and the study asks for it by `task.scale = "federation"`.
    """
    moments = {site: reply.card.moments for site, reply in sorted(replies.items())}
    names, digest = study.task.scaled_columns, study_digest(study)
    if silent := [site for site, sums in moments.items() if sums is None]:
        who = f"site '{silent[0]}'{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}"
        why_not = f"{who} did not share the sums of its columns (share_scale = true in its site.toml)"
    else:
        columns = combine([sums for sums in moments.values() if sums is not None])
        unknown = [name for name, column in zip(names, columns, strict=True) if column is None]
        if not unknown:
            return AgreedScale(study=digest, scale=joined([column for column in columns if column is not None]))
        why_not = (
            f"no site has {LEAST_ROWS} training rows in which '{unknown[0]}' is known, more than {MOST_ALONE} of "
            "these with another value than the most frequent one"
        )
    if study.task.scale == "federation":
        raise ConfigError(
            f"there is no scale for all sites, as task.scale = 'federation' asks for: {why_not}; mend that, or give "
            "mean and std of every column in task.scale"
        )
    return AgreedScale(study=digest, scale=None, why_not=why_not)


def load_scale(path: Path, study: StudyConfig, *, resuming: bool) -> AgreedScale | None:
    """Return the scale of a run that is resumed; None where its first round is still to come.

    None, too, where the study does not leave the scale to the handshake.

    Raises:
        StateError: it is gone, damaged, or of other study settings, so that the run cannot go on.
    """
    if not study.task.agrees_on_scale:
        return None
    content, _ = read_twice(path)
    if content is None:
        if not resuming:
            return None
        raise StateError(f"'{path}' is gone, by which this run scales its inputs: put it back, or start a new run")
    try:
        agreed = AgreedScale.model_validate_json(content)
    except ValidationError as error:
        what = describe(error, path.name)
        raise StateError(f"cannot read '{path}', by which this run scales its inputs: {what}") from error
    if agreed.study == study_digest(study):
        return agreed
    if not resuming:
        return None
    raise StateError(
        f"'{path}' belongs to a run with other study settings; continue with the study.toml of that run, or start a "
        "new run"
    )


def save_scale(path: Path, agreed: AgreedScale) -> None:
    """Write the scale of a run; it is kept twice.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    write_twice(path, agreed.model_dump_json(indent=1).encode(), mode=0o644)


def scale_facts(study: StudyConfig, agreed: AgreedScale | None) -> ScaleFacts:
    """Return the facts on the scale for a run's result: whose numbers it is, and the numbers where they are common."""
    scale = study.task.fixed_scale if agreed is None else agreed.scale
    by: Literal["study", "federation", "site"]
    if agreed is None:
        by = "site" if study.task.scale == "site" else "study"
    else:
        by = "site" if scale is None else "federation"
    if scale is None:
        return ScaleFacts(by=by)
    numbers = zip(study.task.scaled_columns, scale.mean, scale.std, strict=True)
    return ScaleFacts(by=by, columns={name: ColumnScale(mean=mean, std=std) for name, mean, std in numbers})
