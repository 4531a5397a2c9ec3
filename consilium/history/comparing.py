"""Several runs side by side: the settings that differ, the results, and which of their data are the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consilium.common.errors import ConfigError, clean, listed
from consilium.common.results import RunResult
from consilium.history.entry import Entry
from consilium.history.flat import flattened
from consilium.history.scores import MODELS, mean_of, scores_of

Row = tuple[str, tuple[Any, ...]]
"""A name and one value per run; None where a run has none."""


@dataclass(frozen=True)
class SideBySide:
    """What several runs share and where they differ.

    Args:
        settings: those that differ.
        results: rounds, costs and mean scores.
        sites: every site's score of the model that it serves.
        notes: sentences on what may be compared.
    """

    ids: tuple[str, ...]
    settings: tuple[Row, ...]
    results: tuple[Row, ...]
    sites: tuple[Row, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""

        def rows(of: Sequence[Row]) -> dict[str, dict[str, Any]]:
            return {name: dict(zip(self.ids, values, strict=True)) for name, values in of}

        return {
            "runs": list(self.ids),
            "settings": rows(self.settings),
            "results": rows(self.results),
            "sites": rows(self.sites),
            "notes": list(self.notes),
        }


def side_by_side(entries: Sequence[Entry]) -> SideBySide:
    """Return what finished runs share and where they differ.

    Raises:
        ConfigError: fewer than two, one twice, a comparison, or a run without a result.
    """
    if len({entry.folder.resolve() for entry in entries}) != len(entries) or len(entries) < 2:
        raise ConfigError("give at least two different runs to compare")
    results = [_result_of(entry) for entry in entries]
    return SideBySide(
        ids=tuple(entry.id for entry in entries),
        settings=tuple(_differing([_settings(result) for result in results])),
        results=tuple(_result_rows(entries, results)),
        sites=tuple(_site_rows(results)),
        notes=tuple(_notes(results)),
    )


def _result_of(entry: Entry) -> RunResult:
    if entry.kind == "comparison":
        raise ConfigError(f"'{entry.id}' is a comparison and has its own page: 'consilium runs open {entry.id}'")
    if entry.result is None:
        why = entry.problems[0] if entry.problems else entry.status
        raise ConfigError(f"'{entry.id}' has no result to compare ({why}); 'consilium runs show {entry.id}' says more")
    return entry.result


def _settings(result: RunResult) -> dict[str, Any]:
    study = result.study.model_dump(mode="json", exclude={"num_sites"})
    study["weighting"] = result.study.weights_by.model_dump(mode="json")
    return dict(flattened({**study, "versions": result.versions.model_dump(mode="json")}))


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[Row]:
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [(name, tuple(one.get(name) for one in settings)) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _result_rows(entries: Sequence[Entry], results: Sequence[RunResult]) -> list[Row]:
    scores = [scores_of(result) for result in results]
    rows: list[Row] = [
        ("rounds", tuple(len(result.rounds) for result in results)),
        ("sites", tuple(len(result.sites) for result in results)),
        ("seconds", tuple(round(result.seconds, 1) for result in results)),
        ("bytes up", tuple(sum(record.bytes_up for record in result.rounds) for result in results)),
        ("bytes down", tuple(sum(record.bytes_down for record in result.rounds) for result in results)),
    ]
    for model in MODELS:
        values = tuple(mean_of(of[model]) if model in of else None for of in scores)
        rows.append((f"{model}, mean over sites", values))
    words = list(dict.fromkeys(word for entry in entries for word in entry.effects))
    rows += [(f"joining: {word}", tuple(entry.effects.get(word, 0) for entry in entries)) for word in words]
    return rows


def _site_rows(results: Sequence[RunResult]) -> list[Row]:
    served = [scores_of(result).get("personal", {}) for result in results]
    return [(site, tuple(of.get(site) for of in served)) for site in _all_sites(results)]


def _all_sites(results: Sequence[RunResult]) -> list[str]:
    return list(dict.fromkeys(site for result in results for site in result.sites))


def _notes(results: Sequence[RunResult]) -> list[str]:
    """Say what of the data is the same, so that nobody reads a difference of data as one of methods."""
    notes = []
    if any(result.study.task != results[0].study.task for result in results):
        notes.append("The tasks differ: the scores answer different questions and are not to be compared.")
    shared = [site for site in _all_sites(results) if all(site in result.sites for result in results)]
    if any(result.sites.keys() != results[0].sites.keys() for result in results):
        notes.append(
            f"The sites differ, so the means are over different ones; in all runs: {_names(shared) or 'none'}."
        )
    else:
        notes.append(f"The same {len(shared)} sites took part in all runs.")
    kinds: dict[str, list[str]] = {}
    for site in shared:
        kinds.setdefault(_test_rows(results, site), []).append(site)
    words = {
        "same": "The same test rows, by their digest, at",
        "different": "Different test rows, so part of a difference is their draw, at",
        "alike": "As many test rows, drawn by the same settings, which is no proof that they are the same rows, at",
    }
    notes += [f"{text} {_names(kinds[kind])}." for kind, text in words.items() if kind in kinds]
    sizes = [site for site in shared if len({result.sites[site].num_train for result in results}) > 1]
    if sizes:
        notes.append(f"The number of training rows differs at {_names(sizes)}.")
    notes.append(
        "A difference between runs has no interval here, and one seed each: 'consilium compare' runs methods on the "
        "same rows and seeds, and says which differences are clear."
    )
    return notes


def _test_rows(results: Sequence[RunResult], site: str) -> str:
    """Return whether a site's test rows are the same: by digest, which a common test set has, or else by counts."""
    digests = [result.sites[site].test_digest for result in results]
    if all(digests):
        return "same" if len(set(digests)) == 1 else "different"
    facts = [_draw(result, site) for result in results]
    return "alike" if all(one == facts[0] for one in facts) else "different"


def _draw(result: RunResult, site: str) -> tuple[object, ...]:
    """Return all that a result says of how a site's test rows were drawn, and of the rows."""
    split, facts = result.study.split, result.sites[site]
    drawn = (split.test, split.seed, split.group, split.parts, split.copies, result.study.task.test)
    return (*drawn, facts.num_test, None if facts.test is None else facts.test.majority, facts.test_digest)


def _names(sites: Sequence[str]) -> str:
    return listed([clean(site, 100) for site in sites], 8, "sites")
