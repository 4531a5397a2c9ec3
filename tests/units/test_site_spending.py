"""What `consilium site privacy` says a site has spent: the ledger's numbers, for people and for programs."""

import json
import math
import re
from pathlib import Path

import pytest
from conftest import write_site
from typer.testing import CliRunner

from consilium.client.privacy.ledger import LEDGER, Limit, PrivacyLedger
from consilium.commands.main import app, main
from consilium.common.privacy.accounting import Charge, epsilon_of
from consilium.common.study.load import load_site
from consilium.privacy.spending import MOST_POINTS, as_json, in_words, spending_of
from consilium.privacy.spending_page import render_spending
from consilium.privacy.spending_rows import charge_cells, charges_in_short, drawn_with, lead, meaning, study_cells

STEP, SIZE, COUNTS = Charge("sgd", 4.0, 0.25, 5), Charge("laplace", 10.0), Charge("gaussian", 60.0, steps=2)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return the settings of a site that has taken part in two studies: five and two charges."""
    settings = write_site(tmp_path / "site", "berlin", server="example.org:9092")
    ledger = PrivacyLedger.open(load_site(settings).state_dir, "berlin", server="example.org:9092")
    heart, lung = Limit(1e-4, study=3.0, site=6.0), Limit(1e-5, site=6.0)
    named = {"study": "heart", "run": "one", "data": "ab" * 32}
    ledger.charge([SIZE], round=0, what="how many patients there are", limit=heart, **named)
    for number in (1, 2, 3):
        ledger.charge([STEP], round=number, what="training", limit=heart, **named)
    ledger.charge([COUNTS], round=3, what="test counts", limit=heart, **named)
    for run in ("two", "three"):
        ledger.charge([STEP], study="lung", run=run, round=1, data="ab" * 32, what="training", limit=lung)
    return settings


def test_what_was_spent_is_what_the_accounting_says(site: Path) -> None:
    """By study at its own delta, over all studies at the smallest, and what is left of each budget."""
    spending = spending_of(load_site(site))
    heart, lung = spending.studies
    own = epsilon_of([SIZE, STEP, STEP, STEP, COUNTS], 1e-4)
    assert ("heart", own, 1e-4, 3.0, 3.0 - own, 1, 5) == (
        *(heart.study, heart.epsilon, heart.delta, heart.budget, heart.left, heart.runs, heart.answers),
    )
    assert ("lung", epsilon_of([STEP] * 2, 1e-5), None, None, 2) == (
        *(lung.study, lung.epsilon, lung.budget, lung.left, lung.runs),
    )
    whole = epsilon_of([SIZE, *[STEP] * 5, COUNTS], 1e-5)
    assert (whole, 1e-5, 6.0, 6.0 - whole) == (spending.epsilon, spending.delta, spending.budget, spending.left)
    assert (7, whole) == spending.over_time[-1]
    assert sorted(spending.over_time) == list(spending.over_time)


def test_table_has_a_row_for_charges_that_differ_in_their_round_alone(site: Path) -> None:
    """The page lists each of them; the terminal the rounds from the first to the last."""
    entries = spending_of(load_site(site)).entries
    short = charges_in_short(entries)
    assert ["before the first", "1 to 3", "3", "1", "1"] == [row[4] for row in short]
    assert f"{epsilon_of([STEP], 1e-4):.3f} each" == short[1][6]
    assert ["before the first", "1", "2", "3", "3", "1", "1"] == [row[4] for row in charge_cells(entries)]
    assert all("example.org:9092" == row[1] for row in short)
    changed = entries[2].model_copy(update={"charges": entries[0].charges})
    assert len(charges_in_short([entries[1], changed, entries[3]])) == 3


def test_charges_are_told_in_words(site: Path) -> None:
    """How much noise, on what, and how often: once for each kind of answer of a study."""
    assert [
        "study heart, how many patients there are: one number with discrete Laplace noise of scale 10",
        "study heart, training: 5 steps with normal noise of 4 times the most that one patient can add; a patient "
        "takes part with a chance of 0.25",
        "study heart, test counts: 2 numbers with discrete Gaussian noise of standard deviation 60",
        "study lung, training: 5 steps with normal noise of 4 times the most that one patient can add; a patient takes "
        "part with a chance of 0.25",
    ] == drawn_with(spending_of(load_site(site)).entries)
    assert in_words(Charge("sgd", 2.0)).startswith("one step with normal noise of 2 times")
    assert in_words(Charge("sgd", 2.0)).endswith("every patient takes part")


def test_page_opens_offline_and_holds_every_charge(site: Path) -> None:
    """No script and no address that is fetched; the meaning in two sentences, the chart, each charge, the head."""
    spending = spending_of(load_site(site))
    page = render_spending(spending)
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert 7 + 2 == page.count('<th scope="row">')
    assert spending.head.sha256 in page
    assert f"here {math.exp(spending.epsilon):,.3g}," in page
    assert "epsilon rises to" in page
    assert len(meaning(spending)) == 2
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in meaning(spending))


def test_long_ledger_is_charted_at_some_of_its_charges(tmp_path: Path) -> None:
    """Epsilon is not computed for each of 62 charges, but for the last one in any case."""
    settings = write_site(tmp_path, "berlin")
    ledger = PrivacyLedger.open(load_site(settings).state_dir, "berlin")
    for number in range(1, 63):
        ledger.charge([SIZE], study="heart", run="one", round=number, data="ab", what="a count", limit=Limit(1e-4))
    points = spending_of(load_site(settings)).over_time
    assert len(points) <= MOST_POINTS
    assert points[0][0] == 1
    assert points[-1] == (62, epsilon_of([SIZE] * 62, 1e-4))


def test_site_without_private_studies_has_spent_nothing(tmp_path: Path) -> None:
    """The sentence, the page and the document say so."""
    spending = spending_of(load_site(write_site(tmp_path, "berlin")))
    assert lead(spending) == "berlin has taken part in no private study: nothing was charged"
    assert lead(spending) in render_spending(spending)
    assert [] == study_cells(spending)
    document = as_json(spending)
    assert (0.0, None, [], []) == tuple(document[name] for name in ("epsilon", "delta", "studies", "charges"))


def test_command_prints_writes_the_page_and_gives_a_document(site: Path, tmp_path: Path) -> None:
    """For people a sentence and tables, for the data protection officer a page, for programs every charge."""
    page = tmp_path / "privacy.html"
    shown = CliRunner().invoke(app, ["site", "privacy", str(site), "--out", str(page)])
    assert shown.exit_code == 0
    assert re.search(
        r"berlin has spent epsilon \d\.\d\d at delta 1e-05, over 2 studies; of epsilon 6, the", shown.output
    )
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    document = json.loads(CliRunner().invoke(app, ["site", "privacy", str(site), "--json"]).stdout)
    assert [5, 2] == [study["answers"] for study in document["studies"]]
    assert document["ledger"]["lines"] == len(document["charges"]) == 7
    assert {"mechanism": "sgd", "noise": 4.0, "rate": 0.25, "steps": 5} == document["charges"][1]["charges"][0]


def test_command_says_that_a_ledger_was_put_back(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 13 and the sentence; no number that nobody knows any more."""
    ledger = load_site(site).state_dir / LEDGER
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-2]))
    monkeypatch.setattr("sys.argv", ["consilium", "site", "privacy", str(site)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 13
    assert "was lost, changed, cut or put back" in capsys.readouterr().err
