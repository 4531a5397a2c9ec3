"""The report of a private study: what is promised, what was spent, what is withheld, and counts that have noise."""

import io
from typing import Any

import pytest
from rich.console import Console

from consilium.common.events.run import RoundFinished
from consilium.common.privacy.accounting import Charge, epsilon_of
from consilium.common.results import RunResult
from consilium.common.study.privacy import PrivacyConfig
from consilium.common.study.weightings import SizeFactor, WeightingConfig
from consilium.findings.decimals import DASH
from consilium.report.page import render_page
from consilium.report.privacy import privacy_rows, promise, promise_of_sites, spent_of
from consilium.report.report import Report, build_report
from consilium.report.terminal import print_report
from consilium.running.progress import Progress
from consilium.server.privacy.noise import site_epsilon

SPENT = {"epsilon": 2.5, "budget": 3.0, "delta": 1e-4, "noise": 1.234}


def site_values(test: dict[str, Any] | None, *, privacy: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return one site of a private study's result."""
    sizes = {"num_examples": 500, "num_train": 300, "num_validation": 100, "num_test": 100, "num_skipped": 0}
    values = {"pid": 1, **sizes, "classes": ["no", "yes"], "test": test}
    return values | ({} if privacy is None else {"privacy": privacy})


def result(
    *, privacy: dict[str, Any] | None = None, split: dict[str, Any] | None = None, **sites: dict[str, Any]
) -> RunResult:
    """Return a private study's result, by default with a budget of 3."""
    columns = {"a": {"kind": "number"}, "age": {"kind": "number"}}
    task = {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns}
    scale = {name: {"mean": 0.0, "std": 1.0} for name in columns}
    reply = {"num_examples": 300, "seconds": 0.5, "metrics": {}, "weight": 0.5}
    rounds = [
        {
            "round": number,
            **{key: list(sites) for key in ("asked", "answered", "accepted")},
            "sites": {site: {**reply, "privacy": {**SPENT, "epsilon": 1.0 * number}} for site in sites},
        }
        for number in (1, 2)
    ]
    study = {
        **{"name": "private", "sites": list(sites), "rounds": 2, "task": {**task, "scale": scale}},
        **{"model": {"name": "linear"}, "split": split or {}},
        "privacy": {"examples": privacy or {"epsilon": 3.0}},
    }
    return RunResult.model_validate(
        {
            **{"schema": 1, "run": "run-1", "study": study, "seed": 42, "transport": "grpc", "tls": True},
            **{"started": "2026-11-20T09:40:00Z", "seconds": 9.0, "warnings": [], "scale": {"by": "study"}},
            "versions": dict.fromkeys(("consilium", "flwr", "torch", "torchvision", "python"), "0.1.0"),
            "rounds": rounds,
            "sites": sites,
        }
    )


def noised(personal: int | None = 80, **more: Any) -> dict[str, Any]:
    """Return counts of 100 announced test patients with noise of 3."""
    return {"num_test": 100, "personal": personal, "global_": 80, "noise": 3.0} | more


def report(**settings: Any) -> Report:
    """Return the report of a result."""
    return build_report(result(**settings))


def test_site_is_told_what_it_serves_and_what_is_withheld() -> None:
    """With its interval; nothing is said of joining, as what it has alone stays there."""
    found = report(berlin=site_values(noised()))
    (text,) = found.headlines.values()
    assert text.startswith(
        "berlin: accuracy 0.80 after joining (95 % interval 0.70 to 0.88, with the noise on its counts)"
    )
    assert "berlin alone can say whether joining helps" in text
    assert "withheld" == found.run.verdict("berlin")


@pytest.mark.parametrize(
    ("test", "privacy", "reason"),
    [
        (noised(personal=None), None, "tuned there without noise"),
        (noised(noise=60.0), None, "nothing can be said: the noise on its counts (standard deviation 60)"),
        ({"num_test": 100, "personal": None}, None, "nothing of the budget was left"),
        ({"num_test": 100, "personal": None}, {"epsilon": 3.0, "numbers": 0.0}, "privacy.examples.numbers is 0"),
        (None, None, "There is no test result"),
    ],
)
def test_what_cannot_be_told_has_its_reason(
    test: dict[str, Any] | None, privacy: dict[str, Any] | None, reason: str
) -> None:
    """In the sentence of the site."""
    (text,) = report(berlin=site_values(test), privacy=privacy).headlines.values()
    assert reason in text


def test_page_says_withheld_in_place_of_what_a_private_study_keeps() -> None:
    """Alone, the constant answer and the difference; curves too; and that the counts have noise."""
    html = render_page(report(berlin=site_values(noised())))
    assert html.count("withheld</td>") >= 3
    assert "No measurement of a round leaves the site" in html
    assert "standard deviation" in html and "3 at berlin" in html
    assert "joining clearly helps" not in html


def test_page_has_what_was_promised_spent_and_is_left() -> None:
    """As the site's ledger said last: at the finish, or in its last round where it has not finished."""
    given = result(berlin=site_values(noised(), privacy=SPENT), lyon=site_values(None))
    assert [
        ("berlin", ["3", "0.0001", "1.23 times the clip", "2.5", "0.5"]),
        ("lyon", ["3", "0.0001", "1.23 times the clip", "2", "1"]),
    ] == privacy_rows(given, given.study.sites)
    html = render_page(build_report(given))
    assert "<h2>Privacy</h2>" in html and "1.23 times the clip" in html
    assert "At most epsilon 2.5 was spent at a site." in html


def test_study_that_gives_its_noise_has_no_budget_and_nothing_left() -> None:
    """Only a cost."""
    spent = {"epsilon": 7.0, "delta": 1e-4, "noise": 0.5}
    given = result(privacy={"noise": 0.5}, berlin=site_values(noised(), privacy=spent))
    ((_, texts),) = privacy_rows(given, given.study.sites)
    assert "none: the cost follows from the noise" == texts[0]
    assert ["7", DASH] == texts[3:]


@pytest.mark.parametrize(
    ("split", "privacy", "whom"),
    [
        ({"group": "patient_id"}, None, "one patient, with all of their rows"),
        ({}, None, "one row (the study names no patients"),
        ({"group": "patient_id"}, {"epsilon": 3.0, "unit": "example"}, "one row of a site's data"),
    ],
)
def test_promise_says_whom_it_is_made_to(split: dict[str, Any], privacy: dict[str, Any] | None, whom: str) -> None:
    """A patient only where the study says who is one."""
    assert f"Add or remove {whom}" in promise(result(split=split, privacy=privacy, berlin=site_values(noised())))


def test_ordinary_study_has_no_section_on_privacy_but_says_what_can_be_seen() -> None:
    """The list of what the coordinator can see is in every report."""
    given = result(berlin=site_values({"num_test": 100, "personal": 80, "majority": 50}))
    ordinary = given.study.model_copy(update={"privacy": type(given.study.privacy)()})
    given = given.model_copy(update={"study": ordinary})
    html = render_page(build_report(given))
    assert "<h2>Privacy</h2>" not in html and "withheld" not in html
    assert "What the coordinator could see of a site in this study" in html
    assert spent_of(given, "porto") is None


def test_json_holds_what_was_spent_and_the_noise() -> None:
    """For programs that read reports."""
    found = report(berlin=site_values(noised(), privacy=SPENT)).as_json()
    assert SPENT == found["sites"]["berlin"]["privacy"]
    assert 3.0 == found["sites"]["berlin"]["test"]["noise"]
    assert 2.0 == found["rounds"][1]["sites"]["berlin"]["privacy"]["epsilon"]


def test_terminal_shows_a_private_report() -> None:
    """The sentence, and a dash where something is withheld."""
    shown = Console(width=140, record=True, file=io.StringIO())
    print_report(report(berlin=site_values(noised())), shown)
    assert "berlin alone can say whether joining helps" in shown.export_text()


def test_live_view_shows_epsilon_where_no_measurement_leaves() -> None:
    """In place of a loss that nobody tells."""
    (first, _) = result(berlin=site_values(noised())).rounds
    line = Progress(title="private").take(RoundFinished(**dict(first)))
    assert "berlin epsilon 1.00 of 3" in line


def of_many_sites(*, secure: bool) -> RunResult:
    """Return the result of a study of 60 sites with noise for each as a whole, of which 50 and 60 answered."""
    names = [f"site-{number:02}" for number in range(60)]
    made = result(**{name: site_values(None) for name in names})
    sites = {"noise": 5.0, "clip": 2.0, "delta": 1e-5}
    study = made.study.model_copy(
        update={
            "privacy": PrivacyConfig.model_validate({"secure_aggregation": secure, "sites": sites}),
            "quorum": 50,
            "weighting": WeightingConfig(factors=(SizeFactor(exponent=0),)),
        }
    )
    answered = (tuple(names[:50]), tuple(names))
    rounds = [
        one.model_copy(update={"accepted": who, "site_epsilon": site_epsilon(study, rounds_done=one.round)})
        for one, who in zip(made.rounds, answered, strict=True)
    ]
    return made.model_copy(update={"study": study, "rounds": tuple(rounds)})


def test_report_of_sums_that_hide_sites_says_epsilon_with_and_without_colluding_sites() -> None:
    """20 of 60 may collude, so 30 of 50 carry the noise; the figures are those of one normal mechanism per round."""
    text, page = promise_of_sites(of_many_sites(secure=True)), render_page(build_report(of_many_sites(secure=True)))
    together = epsilon_of([Charge("sgd", 5.0, steps=2)], 1e-5)
    alone = epsilon_of([Charge("sgd", 5.0 * (count / 30) ** 0.5) for count in (50, 60)], 1e-5)
    assert "any 30 of those that answered have 5 times the clip of 2 together" in text
    assert f"Epsilon {together:.4g} bounds what the mean updates of 2 rounds tell" in text
    assert "for the coordinator together with 20 sites" in text
    assert f"For the coordinator alone it is {alone:.4g}" in text
    assert "Noise for whole sites" in page
    assert f"{alone:.4g}" in page
    assert "Withheld: no measurement of a round leaves the sites" in page


def test_report_of_noise_at_the_server_says_that_it_saw_each_update() -> None:
    """And other studies have no such section."""
    text = promise_of_sites(of_many_sites(secure=False))
    assert "The coordinator added noise of 5 times the clip of 2" in text
    assert "not for the coordinator, who saw each site's update" in text
    assert "" == promise_of_sites(result(berlin=site_values(noised())))
    assert "Noise for whole sites" not in render_page(report(berlin=site_values(noised())))
