"""Turn a finished study's `result.json` into a report: numbers, CSV, and the table of a terminal.

`build_report` computes, everything else (and the page, in `report_page.py`) only shows what it computed.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import ProtocolError
from common.protocol import TestCounts
from common.study.load import describe
from common.study.task import TableTask
from consilium.findings import (
    ACCURACIES,
    DIFFERENCE,
    MEASURES,
    Interval,
    Measures,
    findings_of,
    sentence,
)
from consilium.findings.contradiction import contradiction
from consilium.findings.html import DASH, Json, number

TITLES = {
    "majority": "majority class",
    "local": "local only",
    "global": "global",
    "personal": "personal",
    "personal_minus_local": "personal - local",
}
CURVES = ("global", "personal", "local")
ROUND_METRICS = (*(f"{model}.{number}" for model in CURVES for number in ("loss", "accuracy")), "train.loss")
ROUND_COLUMNS = (
    *("round", "site", "asked", "answered", "accepted", "rejected", "weight", "num_examples"),
    *("site_seconds", "round_seconds", "bytes_up", "bytes_down", "weighting_notes"),
    *(name.replace(".", "_") for name in ROUND_METRICS),
)


def score_of(report: Json) -> str:
    """Return what the share of right answers is called in a report's study."""
    task = report.get("study", {}).get("task", {})
    return TableTask.model_validate(task).score if task.get("regression") else "accuracy"


def titles_of(report: Json) -> dict[str, str]:
    """Return `TITLES` as they are in a report's study: without classes, the constant answer is a mean."""
    return TITLES | ({"majority": "training mean"} if report.get("study", {}).get("task", {}).get("regression") else {})


# --- the numbers -----------------------------------------------------------------------------------


def build_report(result: Json, comparisons: Sequence[Json] = ()) -> dict[str, Any]:
    """Return the result with accuracies, intervals, a summary over the sites and one sentence per site.

    Args:
        result: what the server wrote as `result.json`.
        comparisons: other runs of the study, each `{"label": str, "result": ...}`.

    Raises:
        ProtocolError: a site's test counts cannot be.
    """
    sites, summary = _numbers(result)
    rest = {key: value for key, value in result.items() if key not in ("sites", "rounds")}
    what = score_of(result)
    return {
        **rest,
        "warnings": [*result.get("warnings", ()), *_contradictions(sites)],
        "headlines": [_headline(site, values, what) for site, values in sites.items()],
        "summary": summary,
        "sites": sites,
        "comparisons": [_comparison(str(other["label"]), other["result"]) for other in comparisons],
        "curves": _mean_curves(result),
        "rounds": list(result.get("rounds", [])),
    }


def _numbers(result: Json) -> tuple[dict[str, Any], dict[str, Any]]:
    told: Mapping[str, Json] = result["sites"]
    counts = {site: _counts(site, values["test"]) for site, values in told.items() if values.get("test")}
    found = findings_of(counts)
    sites = {}
    for site in _in_study_order(result, told):
        measures = found.sites.get(site, dict.fromkeys(MEASURES))
        difference = measures[DIFFERENCE]
        sites[site] = dict(told[site]) | _as_json(measures)
        sites[site] |= {
            "verdict": found.verdicts.get(site, "unknown"),
            "p": None if difference is None else difference.p,
            "p_adjusted": found.adjusted.get(site),
        }
    summary = {
        "num_sites": len(counts),
        "mean": _as_json(found.mean),
        "weighted_mean": _as_json(found.weighted_mean),
        "worst": _as_json(found.worst),
    }
    return sites, summary


def _contradictions(sites: Json) -> list[str]:
    """Return a sentence per site whose data contradict the others', as far as the run's models show it."""
    found = []
    for site, values in sites.items():
        test = values.get("test") or {}
        if test.get("global_") is not None and test.get("local") is not None:
            right = {"majority": test["majority"], "local": test["local"], "everyone": test["global_"]}
            text = contradiction(site, num_test=test["num_test"], num_sites=len(sites), **right)
            found += [] if text is None else [text]
    return found


def _counts(site: str, test: Json) -> TestCounts:
    try:
        return TestCounts.model_validate(test)
    except ValidationError as error:
        raise ProtocolError(describe(error, f"test counts of site '{site}'")) from error


def _in_study_order(result: Json, names: Iterable[str]) -> list[str]:
    order = {site: index for index, site in enumerate(result.get("study", {}).get("sites", ()))}
    return sorted(names, key=lambda site: (order.get(site, len(order)), site))


def _as_json(measures: Measures) -> dict[str, Any]:
    def value(name: str) -> float | None:
        found = measures[name]
        return None if found is None else found.value

    def interval(name: str) -> list[float] | None:
        found = measures[name]
        return None if found is None or found.low is None or found.high is None else [found.low, found.high]

    return {
        "metrics": {name: value(name) for name in ACCURACIES},
        DIFFERENCE: value(DIFFERENCE),
        "intervals": {name: interval(name) for name in MEASURES},
    }


def _comparison(label: str, result: Json) -> dict[str, Any]:
    sites, summary = _numbers(result)
    return {"label": label, "sites": sites, "summary": summary, "curves": _mean_curves(result)}


def measured_rounds(result: Json) -> list[Json]:
    """Return the rounds in which some site measured a model, as others are no gaps in a curve; all if none ever did."""
    names = {f"{model}.loss" for model in CURVES}
    rounds = list(result.get("rounds", []))
    measured = [
        each
        for each in rounds
        if any(names & values.get("metrics", {}).keys() for values in each.get("sites", {}).values())
    ]
    return measured or rounds


def _mean_curves(result: Json) -> dict[str, list[float | None]]:
    rounds = measured_rounds(result)
    curves: dict[str, list[float | None]] = {"round": [each["round"] for each in rounds]}
    for name in ROUND_METRICS:
        curves[name] = [_mean(metric_of(each, site, name) for site in each.get("sites", {})) for each in rounds]
    return curves


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def metric_of(round_: Json, site: str, name: str) -> float | None:
    """Return one of a site's numbers in a round; None if it told none."""
    value = round_.get("sites", {}).get(site, {}).get("metrics", {}).get(name)
    return None if value is None else float(value)


def effect(values: Json) -> str:
    """Return what joining does at a site, with the p of Holm over the sites: a verdict of `consilium.findings`."""
    return str(values["verdict"])


def _headline(site: str, values: Json, what: str) -> str:
    if values["metrics"]["personal"] is None:
        return f"There is no test result from {site}."
    alone, joined, difference = (_interval(values, name) for name in ("local", "personal", DIFFERENCE))
    return sentence(site, alone, joined, difference, metric=what, p_adjusted=values["p_adjusted"])


def _interval(values: Json, name: str) -> Interval | None:
    """Return a measure of a site again as its interval."""
    value = values[name] if name == DIFFERENCE else values["metrics"][name]
    low, high = values["intervals"][name] or (None, None)
    return None if value is None else Interval(value, low, high)


def cell_of(values: Json, name: str) -> tuple[str, str]:
    """Return a measure and its interval as text; an empty string for what is None."""
    point = values[name] if name == DIFFERENCE else values["metrics"][name]
    interval = values["intervals"][name]
    bounds = "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"
    return ("" if point is None else number(point, sign=name == DIFFERENCE)), bounds


def summary_rows(report: Json) -> list[tuple[str, str, Json]]:
    """Return the table's rows below the sites: label, examples, values."""
    summary = report["summary"]
    mean = "mean" if summary["num_sites"] == len(report["sites"]) else f"mean of {summary['num_sites']}"
    return [
        (mean, "", summary["mean"]),
        ("weighted mean", "", summary["weighted_mean"]),
        ("worst site", "", summary["worst"]),
    ]


# --- the files -------------------------------------------------------------------------------------


def rounds_csv(report: Json) -> str:
    """Return one line per round and site."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    signals = signals_of(report)
    writer.writerow((*ROUND_COLUMNS, *signals))
    for each in report["rounds"]:
        for site in sites_of(report):
            told = each.get("sites", {}).get(site, {}).get("signals", {})
            writer.writerow([*_round_row(each, site), *(told.get(name) for name in signals)])
    return file.getvalue()


def signals_of(report: Json) -> list[str]:
    """Return the names of all signals behind the weights, e.g. `size.examples`, in sorted order."""
    facts = (values for each in report["rounds"] for values in each.get("sites", {}).values())
    return sorted({name for values in facts for name in values.get("signals", {})})


def sites_of(report: Json) -> list[str]:
    """Return all sites of a report, in the order of the study."""
    return _in_study_order(report, {*report["sites"], *report.get("study", {}).get("sites", ())})


def _round_row(round_: Json, site: str) -> list[Any]:
    values: Json = round_.get("sites", {}).get(site, {})
    took_part = [str(site in round_.get(name, ())).lower() for name in ("asked", "answered", "accepted")]
    return [
        *(round_["round"], site, *took_part, round_.get("rejected", {}).get(site)),
        *(values.get(name) for name in ("weight", "num_examples", "seconds")),
        *(round_.get(name) for name in ("seconds", "bytes_up", "bytes_down")),
        "; ".join(round_.get("notes", ())),
        *(metric_of(round_, site, name) for name in ROUND_METRICS),
    ]


# --- the terminal ----------------------------------------------------------------------------------


def print_table(report: Json, console: Console) -> None:
    """Print the table and the sentence of every site; plain text where there is no terminal.

    Below 120 columns an interval goes under its number, and the majority class has none; 80 are enough.
    """
    wide = console.width >= 120
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1 if wide else 0))
    table.add_column("site", overflow="fold")
    for title in ("examples", *titles_of(report).values()):
        header = title.replace(" class", "\nclass").replace(" mean", "\nmean").replace(" local", "\nlocal")
        table.add_column(title if wide else header, justify="right", no_wrap=True)
    for site, values in report["sites"].items():
        table.add_row(Text(site), *_texts(str(values.get("num_examples", DASH)), values, wide=wide))
    table.add_section()
    for label, examples, values in summary_rows(report):
        table.add_row(Text(label, style="bold"), *_texts(examples, values, wide=wide))
    console.print(table)
    console.print()
    console.print(Text(f"{score_of(report)} on each site's own test split, with its 95 % interval", style="dim"))
    console.print()
    for headline in report["headlines"]:
        console.print(Text(headline), soft_wrap=True)


def _texts(examples: str, values: Json, *, wide: bool) -> list[Text]:
    texts = [Text(examples)]
    for name in MEASURES:
        point, interval = cell_of(values, name)
        if name == "majority" and not wide:
            interval = ""
        texts.append(Text(f"{point}{' ' if wide else chr(10)}{interval}".strip() or DASH))
    return texts
