"""What was skipped, failed, is undefined or contradicts the rest, in sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from consilium.common.errors import listed
from consilium.comparison.comparison import Comparison
from consilium.comparison.evaluation import Floats
from consilium.comparison.number_scores import NumberScores
from consilium.comparison.rows import CONSTANTS, FEDAVG, LOCAL, Row
from consilium.comparison.variants import Skipped
from consilium.findings.contradiction import contradiction, contradiction_of_errors

MOST_NAMED = 4
"""How many sites one warning names at most."""
MOST_CLASSES = 8
"""How many classes of a site it names at most; where the next character is learned there are 97."""


def contradictions_of(comparison: Comparison, by_name: Mapping[str, Row]) -> list[str]:
    """Return a sentence per site whose data contradict the others', by FedAvg's model."""
    if comparison.task.label_kind not in _CONTRADICTED:
        return []
    names = (CONSTANTS[comparison.task.label_kind], LOCAL, FEDAVG)
    rows = [by_name[name] for name in names if name in by_name]
    if len(rows) < len(names):
        return []
    of_site = _CONTRADICTED[comparison.task.label_kind]
    return [text for site in comparison.sites if (text := of_site(comparison, rows, site)) is not None]


def _by_classes(comparison: Comparison, rows: Sequence[Row], site: str) -> str | None:
    cells = [sites[site].cell for seeds in rows[1].places.values() for sites in seeds if site in sites]
    size = comparison.facts(cells[0], site).num_test if cells else 0
    shares = [_mean_at(comparison, row, site) for row in rows]
    majority, local, everyone = (None if share is None else share * size for share in shares)
    if majority is None or local is None or everyone is None:
        return None
    num_sites = len(comparison.sites)
    return contradiction(site, num_test=size, majority=majority, local=local, everyone=everyone, num_sites=num_sites)


def _mean_at(comparison: Comparison, row: Row, site: str) -> float | None:
    seeds = [sites for seeds in row.places.values() for sites in seeds if site in sites]
    values = [comparison.value(sites[site], site, "accuracy") for sites in seeds]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _by_numbers(comparison: Comparison, rows: Sequence[Row], site: str) -> str | None:
    constant, local, everyone = (_errors_at(comparison, row, site) for row in rows)
    if constant is None or local is None or everyone is None:
        return None
    num_sites = len(comparison.sites)
    return contradiction_of_errors(site, constant=constant, local=local, everyone=everyone, num_sites=num_sites)


def _errors_at(comparison: Comparison, row: Row, site: str) -> Floats | None:
    """Return answer minus label on the site's test rows of the first split, as means over its seeds."""
    seeds = row.places[min(row.places)]
    scores = [comparison.scores(sites[site], site) for sites in seeds if site in sites]
    errors = [one.predicted - one.y for one in scores if isinstance(one, NumberScores)]
    return np.mean(errors, axis=0) if errors and len(errors) == len(seeds) else None


_CONTRADICTED = {"classes": _by_classes, "numbers": _by_numbers}
"""How data that contradict the others' are noticed, by what labels are; times until an event contradict nobody."""


def problems_of(comparison: Comparison, row: Row, skipped: Sequence[Skipped]) -> list[str]:
    """Return what could not be run, failed, or is not defined on the test rows (looked up in the cells of one row)."""
    problems = [f"Not run: {one.label}: {one.reason}" for one in skipped]
    failed = Counter((cell.label, result.error) for cell, result in comparison.results.items() if result.error)
    tried = Counter(cell.label for cell in comparison.results)
    problems += [
        f"Failed: {label} ({count} of {tried[label]} studies): {text}" for (label, text), count in failed.items()
    ]
    undefined: dict[str, set[str]] = {}
    for cell in (cell for cells in row.cells().values() for cell in cells):
        for site, facts in comparison.results[cell].sites.items():
            if missing := {
                name for name, count in zip(comparison.task.classes, facts.support, strict=True) if not count
            }:
                undefined.setdefault(site, set()).update(missing)
    if undefined:
        lacking = [
            f"{site} ({listed(sorted(missing), MOST_CLASSES, 'classes')})"
            for site, missing in sorted(undefined.items())
        ]
        problems.append(
            f"Test rows of some split have no example of some class at {listed(lacking, MOST_NAMED, 'sites')}: "
            "numbers that need every class are not defined there and shown as a dash"
        )
    early = Counter(cell.label for cell, result in comparison.results.items() if result.stopped is not None)
    for label, count in early.items():
        ends = [one.stopped.round for cell, one in comparison.results.items() if cell.label == label and one.stopped]
        problems.append(f"Stopped early: {label} in {count} of {tried[label]} studies, after {_rounds(ends)}")
    warnings = {text for result in comparison.results.values() for text in result.warnings}
    return problems + _engines(comparison) + sorted(warnings)


def _engines(comparison: Comparison) -> list[str]:
    """Return which engine trained, and for each variant why some of its trainings were no part of a stack."""
    used = [(cell.label, result.engine) for cell, result in comparison.results.items() if result.engine is not None]
    if not used:
        return []
    alone, stacked = dict[str, Counter[str]](), sum(use.stacked for _, use in used)
    for label, use in used:
        alone.setdefault(label, Counter()).update(use.alone)
    singly = sum(reasons.total() for reasons in alone.values())
    sentences = [
        f"Engine batched: {stacked} of {stacked + singly} trainings were done in stacks, which gives what each site's "
        "own training would but for rounding"
    ]
    for label, reasons in alone.items():
        found = [f"{reason} ({count} times)" for reason, count in reasons.most_common()]
        sentences += [f"Trained one by one: {label}: {'; '.join(found)}"] if found else []
    return sentences


def _rounds(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"round {least}" if least == most else f"rounds {least} to {most}"
