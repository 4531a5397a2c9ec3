"""Words that the page and the terminal share: what the metric is, and what is clear once all sites are counted."""

from consilium.common.study.task import TableTask
from consilium.comparison.evaluation import IN_UNITS, SMALLER_IS_BETTER
from consilium.comparison.report import Report
from consilium.findings.decimals import counted

SURVIVES = " \N{DAGGER}"
"""Marks a mean difference of a method that is clear also once all methods are counted; baselines are not counted."""


def explained(report: Report) -> str:
    """Return what a reader must know of the report's metric, in brackets; nothing where more is better."""
    facts = ["smaller is better"] if report.metric in SMALLER_IS_BETTER else []
    if isinstance(report.study.task, TableTask) and report.metric in IN_UNITS:
        facts.append(f"in units of '{report.study.task.label}'")
    if report.study.task.label_kind == "masks" and report.metric in IN_UNITS:
        facts.append("in pixels of the study's size")
    return f" ({', '.join(facts)})" if facts else ""


def lead(report: Report) -> str:
    """Return what is clear once all sites are counted, in one sentence."""
    kinds = [kind for kind, _ in report.headlines.values()]
    stays = f"; {kinds.count('stays')} would stay alone" if "stays" in kinds else ""
    return (
        f"Of {counted(len(kinds), 'site')}, joining clearly helps {kinds.count('helps')} and clearly hurts "
        f"{kinds.count('hurts')}, all sites counted (Holm){stays}."
    )
