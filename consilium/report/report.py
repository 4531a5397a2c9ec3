"""What a finished run allows to say: computed once, here; the page, the terminal and the files show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from consilium.common.results import RoundRecord, RunResult, SiteResult
from consilium.common.study.privacy import ExamplePrivacy
from consilium.findings import (
    ACCURACIES,
    DIFFERENCE,
    MEASURES,
    Findings,
    Interval,
    Measures,
    brier_scores,
    findings_of,
    sentence,
)
from consilium.findings.contradiction import contradiction
from consilium.report.curves import mean_curves
from consilium.report.groups import GroupRow, group_rows, rows_of, without_devices
from consilium.report.privacy import headline

TITLES: Mapping[str, str] = {
    "majority": "majority class",
    "local": "local only",
    "global": "global",
    "personal": "personal",
    DIFFERENCE: "personal - local",
}
"""Titles of the columns of every table of measures."""


@dataclass(frozen=True)
class Run:
    """One run: what it left, what its counts allow to say, and its label among others."""

    label: str
    result: RunResult
    findings: Findings

    @classmethod
    def of(cls, result: RunResult, *, label: str) -> "Run":
        """Return a run with the findings of its sites' counts."""
        told = {site: result.sites[site].test for site in rows_of(result) if site in result.sites}
        return cls(label, result, findings_of({site: test for site, test in told.items() if test is not None}))

    @cached_property
    def sites(self) -> dict[str, SiteResult]:
        """Return the sites that took part and have a row, in the order of the study."""
        return {site: self.result.sites[site] for site in self.rows if site in self.result.sites}

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Return who has a row: the study's sites, and the devices of groups that have few."""
        return rows_of(self.result)

    @cached_property
    def groups(self) -> tuple[GroupRow, ...]:
        """Return the groups that have many devices."""
        return group_rows(self.result)

    @property
    def rounds(self) -> tuple[RoundRecord, ...]:
        """Return what happened, round by round."""
        return self.result.rounds

    @property
    def score(self) -> str:
        """Return what the share of right answers is called."""
        return self.result.study.task.score

    @property
    def titles(self) -> dict[str, str]:
        """Return `TITLES` as they are in this study: without classes, the constant answer is another one."""
        task = self.result.study.task
        return {**TITLES, **({} if task.classes else {"majority": task.constant})}

    @cached_property
    def brier(self) -> dict[str, Measures]:
        """Return the Brier scores at the study's horizon of every site that tells them; smaller is better."""
        told = {site: None if of.test is None else brier_scores(of.test) for site, of in self.sites.items()}
        return {site: one for site, one in told.items() if one is not None}

    def measures(self, site: str) -> Measures:
        """Return every measure of a site; all None where it reported no counts."""
        return self.findings.sites.get(site, dict.fromkeys(MEASURES))

    @property
    def private(self) -> ExamplePrivacy | None:
        """Return what the study promises each patient; None where it promises nothing."""
        return self.result.study.privacy.examples

    def verdict(self, site: str) -> str:
        """Return what joining does at a site, all sites counted (Holm)."""
        return "withheld" if self.private is not None else self.findings.verdicts.get(site, "unknown")

    @property
    def over_sites(self) -> list[tuple[str, Measures]]:
        """Return the rows below the sites: label and measures."""
        tested = len(self.findings.sites)
        mean = "mean" if tested == len(self.sites) else f"mean of {tested}"
        return [
            (mean, self.findings.mean),
            ("weighted mean", self.findings.weighted_mean),
            ("worst site", self.findings.worst),
        ]


@dataclass(frozen=True)
class Report:
    """A run, other runs of the study to compare it with, and what is to be said of it.

    Args:
        warnings: of the run, and of sites whose data contradict the others'.
        headlines: per site the sentence on what joining does.
    """

    run: Run
    others: tuple[Run, ...]
    warnings: tuple[str, ...]
    headlines: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON: the result, with measures, intervals, sentences and curves."""
        result = self.run.result.model_dump(mode="json")
        return {
            **{key: value for key, value in result.items() if key not in ("sites", "rounds")},
            "warnings": list(self.warnings),
            "headlines": list(self.headlines.values()),
            "summary": _summary_json(self.run),
            "sites": _sites_json(self.run),
            **({"groups": {row.name: row.as_json() for row in self.run.groups}} if self.run.groups else {}),
            "comparisons": [
                {
                    "label": other.label,
                    "sites": _sites_json(other),
                    "summary": _summary_json(other),
                    "curves": mean_curves(other.rounds),
                }
                for other in self.others
            ],
            "curves": mean_curves(self.run.rounds),
            "rounds": [without_devices(record, self.run.result) for record in result["rounds"]],
        }


def build_report(result: RunResult, others: Mapping[str, RunResult] | None = None) -> Report:
    """Return what a run's result allows to say.

    Args:
        others: other runs of the study, by their labels.
    """
    start = "random start" if result.study.model.pretrained is None else "pretrained"
    run = Run.of(result, label=f"this study ({start})")
    return Report(
        run=run,
        others=tuple(Run.of(other, label=label) for label, other in (others or {}).items()),
        warnings=(*result.warnings, *_contradictions(run)),
        headlines={site: _headline(run, site) for site in run.sites},
    )


def _headline(run: Run, site: str) -> str:
    measures = run.measures(site)
    if run.private is not None:
        return headline(site, run.sites[site].test, measures["personal"], run.score, run.private)
    if measures["personal"] is None:
        return f"There is no test result from {site}."
    return sentence(
        site,
        measures["local"],
        measures["personal"],
        measures[DIFFERENCE],
        metric=run.score,
        p_adjusted=run.findings.adjusted[site],
    )


def _contradictions(run: Run) -> list[str]:
    """Return a sentence per site whose data contradict the others', as far as the run's models show it."""
    sentences = []
    for site, facts in run.sites.items():
        test = facts.test
        if test is None or test.global_ is None or test.local is None or test.majority is None:
            continue
        text = contradiction(
            site,
            num_test=test.num_test,
            majority=test.majority,
            local=test.local,
            everyone=test.global_,
            num_sites=len(run.sites),
            constant=run.result.study.task.constant,
        )
        sentences += [] if text is None else [text]
    return sentences


def _sites_json(run: Run) -> dict[str, Any]:
    sites = {}
    for site, facts in run.sites.items():
        measures = run.measures(site)
        difference = measures[DIFFERENCE]
        sites[site] = {
            **facts.model_dump(mode="json"),
            **_measures_json(measures),
            "verdict": run.verdict(site),
            "p": None if difference is None else difference.p,
            "p_adjusted": run.findings.adjusted.get(site),
        }
        if site in run.brier:
            sites[site]["brier"] = _measures_json(run.brier[site])
    return sites


def _summary_json(run: Run) -> dict[str, Any]:
    return {
        "num_sites": len(run.findings.sites),
        "mean": _measures_json(run.findings.mean),
        "weighted_mean": _measures_json(run.findings.weighted_mean),
        "worst": _measures_json(run.findings.worst),
    }


def _measures_json(measures: Measures) -> dict[str, Any]:
    def value(one: Interval | None) -> float | None:
        return None if one is None else one.value

    def bounds(one: Interval | None) -> list[float] | None:
        return None if one is None or one.bounds is None else list(one.bounds)

    return {
        "metrics": {name: value(measures[name]) for name in ACCURACIES},
        DIFFERENCE: value(measures[DIFFERENCE]),
        "intervals": {name: bounds(measures[name]) for name in MEASURES},
    }
