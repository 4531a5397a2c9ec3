"""Settles by what a run's inputs are scaled, from what the sites told in the handshake, once for the whole run.

It lies in the run's folder before any site is told: a run that is resumed goes on with it, whoever is there by then.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.data.scale import LEAST_ROWS, MOST_ALONE, Scale, combine, distances, joined
from common.errors import ConfigError, StateError
from common.host.files import write_atomically
from common.protocol import HandshakeReply, Sha256, study_digest
from common.study.load import describe
from common.study.record import Record
from common.study.study import StudyConfig

FAR_OFF = 20.0
"""From so many times the usual distance on a site's values of a column are worth a warning."""


class Settled(Record):
    """By what the inputs of a run are scaled where the study leaves it to the handshake; None: by each site's own rows.

    Args:
        study: digest of the study.
        why_not: why there is no scale of all sites, a sentence.
    """

    study: Sha256
    scale: Scale | None
    why_not: str | None = None


def settle(study: StudyConfig, replies: Mapping[str, HandshakeReply]) -> Settled:
    """Return the scale over what all sites told; none where a site keeps its sums to itself, or no site can tell.

    Raises:
        ConfigError: there is none, and the study asks for it by `task.scale = "federation"`.
    """
    told = {site: reply.card.moments for site, reply in sorted(replies.items())}
    names, digest = study.task.scaled_columns, study_digest(study)
    if silent := [site for site, moments in told.items() if moments is None]:
        who = f"site '{silent[0]}'{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}"
        why_not = f"{who} did not tell the sums of its columns (share_scale = true in its site.toml)"
    else:
        columns = combine([moments for moments in told.values() if moments is not None])
        unknown = [name for name, column in zip(names, columns, strict=True) if column is None]
        if not unknown:
            return Settled(study=digest, scale=joined([column for column in columns if column is not None]))
        why_not = (
            f"no site has {LEAST_ROWS} training rows in which '{unknown[0]}' is known, without all but {MOST_ALONE} or "
            "fewer being equal"
        )
    if study.task.scale == "federation":
        raise ConfigError(
            f"there is no scale for all sites, as task.scale = 'federation' asks for: {why_not}; mend that, or give "
            "mean and std of every column in task.scale"
        )
    return Settled(study=digest, scale=None, why_not=why_not)


def far_off(study: StudyConfig, replies: Mapping[str, HandshakeReply]) -> dict[str, str]:
    """Return a sentence for each site whose values of a column lie so far from the others' that these become all alike.

    Nobody but the site knows its values; a person may know what units and outliers it has.
    """
    told = {site: reply.card.moments for site, reply in sorted(replies.items()) if reply.card.moments is not None}
    found: dict[str, list[tuple[float, str]]] = {}
    for place, name in enumerate(study.task.scaled_columns if told else ()):
        sums = {site: (of.counts[place], of.sums[place], of.squares[place]) for site, of in told.items()}
        known = {site: column for site, column in sums.items() if column[0]}
        for site, times in zip(known, distances(list(known.values())), strict=True):
            if times > FAR_OFF:
                found.setdefault(site, []).append((times, name))
    return {site: _too_far(site, columns) for site, columns in found.items()}


def _too_far(site: str, columns: Sequence[tuple[float, str]]) -> str:
    times, name = max(columns)
    more = f" (and {len(columns) - 1} more)" if len(columns) > 1 else ""
    return (
        f"site '{site}': its values of '{name}'{more} lie {times:.3g} times as far from what is usual as other sites': "
        "by one scale for all hardly a difference between the others' examples is left; ask the site for its units and "
        "outliers, or choose another task.scale"
    )


def kept_scale(path: Path, study: StudyConfig, *, resuming: bool) -> Settled | None:
    """Return what was settled for a run that is resumed; None where its first round is still to come.

    None too where the study does not leave it to the handshake.

    Raises:
        StateError: it is gone, damaged, or of other study settings, so that the run cannot go on.
    """
    if not study.task.agrees_on_scale:
        return None
    try:
        settled = Settled.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if not resuming:
            return None
        raise StateError(
            f"'{path}' is gone, by which this run scales its inputs: put it back, or start a new run"
        ) from None
    except (OSError, ValidationError) as error:
        what = describe(error, path.name) if isinstance(error, ValidationError) else f"{error.strerror or error}"
        raise StateError(f"cannot read '{path}', by which this run scales its inputs: {what}") from error
    if settled.study == study_digest(study):
        return settled
    if not resuming:
        return None
    raise StateError(
        f"'{path}' belongs to a run with other study settings; continue with the study.toml of that run, or start a "
        "new run"
    )


def keep_scale(path: Path, settled: Settled) -> None:
    """Write down what was settled.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    write_atomically(path, settled.model_dump_json(indent=1).encode())


def facts(study: StudyConfig, settled: Settled | None) -> dict[str, Any]:
    """Return by what a run's inputs were scaled, for its result: by whose numbers, and which where they are common."""
    scale = study.task.fixed_scale if settled is None else settled.scale
    if settled is None:
        by = "site" if study.task.scale == "site" else "study"
    else:
        by = "site" if scale is None else "federation"
    if scale is None:
        return {"by": by}
    numbers = zip(study.task.scaled_columns, scale.mean, scale.std, strict=True)
    return {"by": by, "columns": {name: {"mean": mean, "std": std} for name, mean, std in numbers}}
