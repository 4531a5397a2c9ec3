"""The report: its numbers, its files, what the page may load and show, and the table in the terminal."""

import csv
import io
import json
import math
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from paths import ROOT
from pydantic import ValidationError
from rich.console import Console

from consilium.common.errors import StateError
from consilium.common.results import RunResult
from consilium.findings.pages import render
from consilium.report.files import ROUND_COLUMNS, write_report
from consilium.report.page import render_page
from consilium.report.report import Report, build_report
from consilium.report.terminal import print_report

NASTY = "<script>alert('x')</script>"


def site_values(pairs: tuple[int, int, int, int], *, majority: int, global_: int | None) -> dict[str, Any]:
    """Return one site of a result, as the server writes it."""
    both, only_local, only_personal, _ = pairs
    test = {
        "num_test": sum(pairs),
        "majority": majority,
        "local": both + only_local,
        "global_": global_,
        "personal": both + only_personal,
        "pairs": list(pairs),
    }
    return {
        "pid": 1,
        "num_examples": 5 * sum(pairs),
        "num_train": 3 * sum(pairs),
        "num_validation": sum(pairs),
        "num_test": sum(pairs),
        "num_skipped": 0,
        "classes": ["benign", NASTY],
        "class_counts": None,
        "test": test,
    }


def round_values(number: int, *, shift: float = 0.0) -> dict[str, Any]:
    """Return one round: lyon is rejected in round 2, porto never has validation numbers."""
    metrics = {
        "global.loss": 1.0 / number,
        "global.accuracy": 0.7 + 0.05 * number + shift,
        "personal.loss": 0.9 / number,
        "personal.accuracy": 0.72 + 0.05 * number + shift,
        "local.loss": 0.95 / number,
        "local.accuracy": 0.71 + 0.03 * number + shift,
        "train.loss": 0.5 / number,
    }
    names = ["berlin", "lyon", "porto"]
    rejected = {"lyon": "not_finite"} if number == 2 else {}
    values = {"weight": 0.5, "num_examples": 640, "seconds": 0.8}
    return {
        "round": number,
        "seconds": 1.2,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "asked": names,
        "answered": names,
        "accepted": [name for name in names if name not in rejected],
        "rejected": rejected,
        "update_norm": 0.5,
        "sites": {
            "berlin": {**values, "metrics": metrics},
            "lyon": {**values, "metrics": {**metrics, "personal.accuracy": 0.5}},
            "porto": {**values, "metrics": {"train.loss": 0.5}},
        },
    }


def values_of_result(*, has_global: bool = True, shift: float = 0.0) -> dict[str, Any]:
    """Return `result.json` of three sites: joining helps berlin, hurts porto, is unclear at lyon."""
    return {
        "schema": 1,
        "run": "run-1",
        "study": {
            "name": "demo",
            "sites": ["porto", "berlin", "lyon"],
            "seed": 42,
            "rounds": 3,
            "task": {"kind": "images", "classes": ["benign", NASTY], "size": 28},
            "method": {"kind": "fine_tune"},
            "model": {"name": "small_cnn", "pretrained": {"file": NASTY}},
        },
        "seed": 42,
        "transport": "grpc",
        "tls": True,
        "started": "2026-11-20T09:40:00Z",
        "seconds": 93.1,
        "versions": dict.fromkeys(("consilium", "flwr", "torch", "torchvision", "python"), "0.1.0"),
        "warnings": [f"a file was skipped: {NASTY}"],
        "scale": {"by": "study"},
        "rounds": [round_values(number, shift=shift) for number in (1, 2, 3)],
        "sites": {
            "berlin": site_values((175, 3, 17, 5), majority=40, global_=170 if has_global else None),
            "lyon": site_values((90, 6, 8, 16), majority=50, global_=92 if has_global else None),
            "porto": site_values((62, 12, 2, 4), majority=30, global_=60 if has_global else None),
        },
    }


def result(values: dict[str, Any] | None = None, *, shift: float = 0.0) -> RunResult:
    """Return a finished run's result; what is wrong in its values is refused, as in a real one."""
    return RunResult.model_validate(values_of_result(shift=shift) if values is None else values)


def json_of(values: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what `report.json` holds of a result."""
    return build_report(result(values)).as_json()


def table_of(report: Report, width: int) -> str:
    """Return what is printed to a file of that width."""
    file = io.StringIO()
    print_report(report, Console(file=file, width=width))
    return file.getvalue()


class Page(HTMLParser):
    """Collect a page's tags, what they load, its headers and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.headers_without_scope = 0
        self.figures_without_label = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag."""
        values = dict(attrs)
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        self.headers_without_scope += tag == "th" and "scope" not in values
        hidden = values.get("aria-hidden") == "true"
        self.figures_without_label += tag == "svg" and not hidden and not values.get("aria-label")

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


# --- the numbers -----------------------------------------------------------------------------------


def test_report_holds_proportions_differences_and_intervals() -> None:
    """berlin: 40, 178, 170 and 192 of 200; the difference is 17 - 3 pairs of 200: McNemar's z is 14 / sqrt(20)."""
    berlin = json_of()["sites"]["berlin"]
    assert berlin["metrics"] == {"majority": 0.2, "local": 0.89, "global": 0.85, "personal": 0.96}
    assert berlin["personal_minus_local"] == pytest.approx(0.07)
    assert berlin["p"] == pytest.approx(math.erfc(14 / math.sqrt(40)))
    assert berlin["p_adjusted"] == pytest.approx(3 * berlin["p"])
    assert berlin["verdict"] == "helps"
    assert set(berlin["intervals"]) == {"majority", "local", "global", "personal", "personal_minus_local"}
    low, high = berlin["intervals"]["personal_minus_local"]
    assert 0 < low < 0.07 < high


def test_summary_is_the_mean_the_weighted_mean_and_the_worst_site() -> None:
    """local: 178 of 200, 96 of 120, 74 of 80; the worst difference is porto's, and has no interval."""
    summary = json_of()["summary"]
    assert summary["mean"]["metrics"]["local"] == pytest.approx((0.89 + 0.8 + 0.925) / 3)
    assert summary["weighted_mean"]["metrics"]["local"] == pytest.approx((178 + 96 + 74) / 400)
    assert summary["worst"]["metrics"]["local"] == pytest.approx(0.8)
    assert summary["worst"]["personal_minus_local"] == pytest.approx(-0.125)
    assert dict.fromkeys(summary["worst"]["intervals"]) == summary["worst"]["intervals"]


def test_report_keeps_everything_else_and_its_input() -> None:
    """The result's own keys pass through, sites come in the study's order, the input is untouched."""
    given = result()
    report, values = build_report(given).as_json(), given.model_dump(mode="json")
    assert given == result()
    assert {key: values[key] for key in values if key != "sites"} == {
        key: report[key] for key in values if key != "sites"
    }
    assert list(report["sites"]) == ["porto", "berlin", "lyon"]


def test_headlines_say_helps_hurts_or_no_clear_effect() -> None:
    """One sentence per site; clear only if the interval excludes 0, also once the three sites are counted."""
    porto, berlin, lyon = json_of()["headlines"]
    assert berlin == "Joining helps berlin: 0.89 -> 0.96 (+0.07, 95 % interval +0.03 to +0.12)."
    assert lyon.startswith("Joining shows no clear effect at lyon: 0.80 -> 0.82 (+0.02, 95 % interval -0.0")
    assert porto.startswith("Joining hurts porto: ")


def test_verdict_that_is_clear_alone_is_not_clear_among_many_sites() -> None:
    """15 against 5 pairs: mid-p 0.027, and 0.053 after Holm (two of three are left after porto's); the page says it."""
    given = values_of_result()
    given["sites"]["berlin"] = site_values((175, 5, 15, 5), majority=40, global_=170)
    report = build_report(result(given))
    berlin = report.as_json()["sites"]["berlin"]
    assert berlin["p"] < 0.05 < berlin["p_adjusted"] < 0.06
    assert report.headlines["berlin"].startswith("Joining shows no clear effect at berlin: 0.90 -> 0.95 (+0.05, 95 %")
    assert report.headlines["berlin"].endswith("not clear once all sites are counted).")
    assert "Of 3 sites, joining clearly helps 0 and clearly hurts 1." in render_page(report)


def test_site_with_few_test_patients_has_no_sentence_about_joining() -> None:
    """Nine test examples, all better: no interval and no verdict; the page says how many such sites there are."""
    given = values_of_result()
    given["sites"]["lyon"] = site_values((0, 0, 9, 0), majority=4, global_=9)
    report = build_report(result(given))
    lyon = report.as_json()["sites"]["lyon"]
    assert lyon["verdict"] == "too_few"
    assert lyon["intervals"]["personal_minus_local"] is None
    assert report.headlines["lyon"] == (
        "Too little to tell what joining does at lyon: 0.00 -> 1.00 (no interval: fewer than 10 test patients)."
    )
    text = Page(render_page(report)).text
    assert "1 has fewer than 10 test patients." in text
    assert "Too little to tell" in text
    assert "lyon" in table_of(report, 80)


def test_site_whose_data_contradict_the_others_is_warned_about() -> None:
    """The model of all sites is right on 5 of 200, the most frequent class on 120, the site's own model on 180."""
    given = values_of_result()
    given["sites"]["berlin"] = site_values((0, 180, 5, 15), majority=120, global_=5)
    report = build_report(result(given))
    assert len(report.warnings) == len(given["warnings"]) + 1
    assert "'berlin' contradicts the others" in report.warnings[-1]


def test_headline_of_a_clear_effect_never_prints_a_bound_of_zero() -> None:
    """6 of 1000 pairs for joining, none against: the low bound is above 0, and said with enough digits."""
    given = values_of_result()
    given["sites"] = {"berlin": site_values((900, 0, 6, 94), majority=500, global_=900)}
    report = json_of(given)
    low = report["sites"]["berlin"]["intervals"]["personal_minus_local"][0]
    assert 0 < low < 0.005
    assert f"interval +{low:.3f} to" in report["headlines"][0]


def test_no_global_model_is_none_in_json_and_a_dash_in_the_tables() -> None:
    """A method without a global model gives None everywhere; no number stands in for it."""
    report = build_report(result(values_of_result(has_global=False)))
    values = report.as_json()
    every = [*values["sites"].values(), *(values["summary"][name] for name in ("mean", "weighted_mean", "worst"))]
    assert all(each["metrics"]["global"] is None and each["intervals"]["global"] is None for each in every)
    assert "<td>\N{EN DASH}</td>" in render_page(report)
    for width in (80, 140):
        berlin = next(line for line in table_of(report, width).splitlines() if line.startswith("berlin"))
        assert "\N{EN DASH}" in berlin


def test_site_without_a_test_result_is_named_and_not_averaged() -> None:
    """A site that never answered the last plan has dashes, and the mean says over how many sites it is."""
    given = values_of_result()
    given["sites"]["lyon"]["test"] = None
    report = build_report(result(given))
    assert report.headlines["lyon"] == "There is no test result from lyon."
    assert report.as_json()["summary"]["num_sites"] == 2
    assert "mean of 2" in table_of(report, 140)
    assert "Nothing to compare" in render_page(report)


def test_counts_that_cannot_be_are_refused() -> None:
    """Pairs that contradict the totals, or a field that is wrong: the error names the site."""
    for key, value in (("personal", 3), ("num_test", "many")):
        given = values_of_result()
        given["sites"]["lyon"]["test"][key] = value
        with pytest.raises(ValidationError, match=r"sites\.lyon\.test"):
            result(given)


def test_comparisons_have_their_own_numbers_and_curves() -> None:
    """Another run gets the same form; a curve is the mean over the sites that have the metric."""
    report = build_report(result(), {"random start": result(shift=-0.2)}).as_json()
    (other,) = report["comparisons"]
    assert other["label"] == "random start"
    assert other["summary"] == report["summary"]
    assert other["curves"]["round"] == [1, 2, 3]
    assert other["curves"]["global.accuracy"] == pytest.approx([0.55, 0.6, 0.65])
    assert other["curves"]["personal.accuracy"] == pytest.approx([(0.57 + 0.5) / 2, (0.62 + 0.5) / 2, (0.67 + 0.5) / 2])


def test_rounds_in_which_nobody_measured_are_no_gaps_in_a_curve() -> None:
    """A round without measurements is left out of the curves, not of the rounds."""
    given = values_of_result()
    for values in given["rounds"][1]["sites"].values():
        values["metrics"] = {"train.loss": 0.7}
    report = json_of(given)
    assert report["curves"]["round"] == [1, 3]
    assert None not in report["curves"]["global.accuracy"]
    assert len(report["rounds"]) == 3
    for each in given["rounds"]:
        for values in each["sites"].values():
            values["metrics"] = {}
    assert json_of(given)["curves"]["round"] == [1, 2, 3]


# --- the files -------------------------------------------------------------------------------------


def test_write_report_round_trips_json(tmp_path: Path) -> None:
    """report.json is the report."""
    report = build_report(result(), {"random start": result()})
    write_report(tmp_path / "new", report)
    assert json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8")) == report.as_json()
    assert {"report.json", "rounds.csv", "report.html"} == {path.name for path in (tmp_path / "new").iterdir()}


def test_write_report_refuses_a_number_that_is_not_finite(tmp_path: Path) -> None:
    """NaN is not JSON: nothing is written."""
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, build_report(result().model_copy(update={"seconds": float("nan")})))
    assert list(tmp_path.iterdir()) == []


def test_write_report_says_which_folder_cannot_be_written(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        write_report(tmp_path / "file", build_report(result()))


def test_rounds_csv_has_one_row_per_round_and_site(tmp_path: Path) -> None:
    """Three rounds of three sites; what is not known is empty."""
    write_report(tmp_path, build_report(result()))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rounds.csv").read_text(encoding="utf-8"))))
    assert list(ROUND_COLUMNS) == list(rows[0])
    assert [(str(number), name) for number in (1, 2, 3) for name in ("porto", "berlin", "lyon")] == [
        (row["round"], row["site"]) for row in rows
    ]
    lyon = rows[5]
    expected = {"asked": "true", "answered": "true", "accepted": "false", "rejected": "not_finite", "weight": "0.5"}
    expected |= {"num_examples": "640", "site_seconds": "0.8", "round_seconds": "1.2", "bytes_up": "1000"}
    expected |= {"bytes_down": "2000", "personal_accuracy": "0.5", "stale": "0", "shortened": "", "against": ""}
    assert expected == {name: lyon[name] for name in expected}
    assert rows[3]["global_loss"] == "" and rows[3]["train_loss"] == "0.5"


def test_rounds_csv_says_what_was_done_about_an_update(tmp_path: Path) -> None:
    """Late by two rounds, shortened to a half, and against the others by -0.3."""
    (record, *rest), sites = result().rounds, {}
    sites = {site: of.model_copy(update={"stale": 2}) if site == "porto" else of for site, of in record.sites.items()}
    told = {"sites": sites, "shortened": {"porto": 0.5}, "against": {"porto": -0.3}}
    run = result().model_copy(update={"rounds": (record.model_copy(update=told), *rest)})
    write_report(tmp_path, build_report(run))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rounds.csv").read_text(encoding="utf-8"))))
    assert {"stale": "2", "shortened": "0.5", "against": "-0.3"} == {
        name: rows[0][name] for name in ("stale", "shortened", "against")
    }
    assert "" == rows[1]["against"]


# --- the page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def html() -> str:
    """Return the page of a study with a comparison."""
    return render_page(build_report(result(), {f"random {NASTY}": result(shift=-0.2)}))


def test_page_loads_nothing(html: str) -> None:
    """No address, no script, no style sheet; every reference stays on the page; a policy forbids the rest."""
    page = Page(html)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert all(address.startswith("#") for address in page.loads)
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert "default-src 'none'" in html


def test_page_escapes_names_from_outside(html: str) -> None:
    """A class, a file, a warning and a label with a tag in it are shown, not run."""
    assert "<script" not in html
    assert Page(html).text.count(NASTY) >= 4


def test_page_shows_every_site_and_sentence(html: str) -> None:
    """Sentences, rejected updates, warnings and settings are on the page."""
    text = Page(html).text
    for name in ("porto", "berlin", "lyon"):
        assert f'<th scope="row">{name}</th>' in html and f"<h3>{name}</h3>" in html
    assert "Joining helps berlin: 0.89 → 0.96 (+0.07, 95 % interval +0.03 to +0.12)." in text
    for expected in ("not_finite: round 2", "small_cnn", "2026-11-20 09:40 UTC", "How the intervals were made"):
        assert expected in text
    assert "random" in text and "this study (pretrained)" in text


def test_page_can_be_read_by_a_screen_reader(html: str) -> None:
    """Language, title, viewport, header scopes, and a description of every chart."""
    page = Page(html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>demo - consilium report</title>" in html and 'name="viewport"' in html
    assert (page.headers_without_scope, page.figures_without_label) == (0, 0)
    assert "Test accuracy at berlin: majority class 0.20 [0.15, 0.26], local only 0.89" in html


def test_page_keeps_what_decides_in_sight(html: str) -> None:
    """On a telephone the first column and the difference stay where they are while the others scroll."""
    assert 2 == html.count('<th scope="col" class="decisive">personal - local</th>')
    assert (3 + 3) + 2 * 3 == html.count('<td class="decisive">')
    assert ".decisive { position: sticky; right: 0;" in html


def test_page_has_a_chart_for_what_is_known_and_says_what_is_not(html: str) -> None:
    """Two sites with three charts, porto with its bars only, and two charts of the comparison."""
    assert Page(html).tags.count("figure") == 2 * 3 + 1 + 2
    assert html.count("reported no validation numbers") == 1


def test_charts_take_the_colours_of_the_page(html: str) -> None:
    """No fixed colour is left in a chart: they are legible in light and in dark."""
    charts = "".join(re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", charts) == []
    for name in ("currentColor", "var(--majority)", "var(--local)", "var(--global)", "var(--personal)"):
        assert name in charts
    assert "prefers-color-scheme: dark" in html


def test_page_is_the_same_every_time(html: str) -> None:
    """No date, no random name: the same result gives the same bytes."""
    assert html == render_page(build_report(result(), {f"random {NASTY}": result(shift=-0.2)}))


def test_page_of_a_study_without_rounds_or_sites_still_opens() -> None:
    """The thinnest result there can be."""
    report = build_report(result(values_of_result() | {"rounds": [], "sites": {}, "warnings": []}))
    assert "<h1>demo</h1>" in render_page(report)
    assert "site" in table_of(report, 80)


def test_template_that_lacks_a_value_is_an_error() -> None:
    """No page with a hole in it: what a template names must be given."""
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        render("consilium.report", "report.html.j2", {})


def test_templates_are_data_of_their_packages() -> None:
    """Every template lies in a folder of a package that pyproject.toml ships with every package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "templates/*" in project["tool"]["setuptools"]["package-data"]["*"]
    templates = [path for path in ROOT.glob("consilium/**/*") if path.suffix in (".j2", ".css")]
    assert {"findings", "report", "comparison"} <= {path.parent.parent.name for path in templates}
    assert {"templates"} == {path.parent.name for path in templates}
    assert all((path.parent.parent / "__init__.py").is_file() for path in templates)


# --- the terminal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 140])
def test_table_fits_and_shows_numbers_and_sentences(width: int) -> None:
    """No line of the table is wider than the console, no number is cut, every sentence is one line."""
    report = build_report(result())
    text = table_of(report, width)
    table = text[: text.index("accuracy on")]
    assert max(len(line) for line in table.splitlines()) <= width
    assert "…" not in text
    for expected in ("[0.84, 0.93]", "[-0.22, -0.04]", "+0.07", "worst"):
        assert expected in table
    assert list(report.headlines.values()) == text.strip().splitlines()[-3:]


def test_wide_table_has_number_and_interval_on_one_line() -> None:
    """From 120 columns on a cell reads `0.89 [0.84, 0.93]`."""
    assert "0.20 [0.15, 0.26]   0.89 [0.84, 0.93]" in table_of(build_report(result()), 140)
