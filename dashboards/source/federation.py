"""Federation: is it healthy, how far is it, who is here."""

from grafana_foundation_sdk.models import dashboard as models

from dashboards.source.panels import (
    AMBER,
    BLUE,
    COLOURS,
    RED,
    SITES,
    STATES,
    Column,
    Look,
    Panel,
    Query,
    bars,
    frame,
    rows,
    single_value,
    time_series,
    timeline,
)

STUDY = '{study="$study"}'
SEEN = '(0 * max(up{job="consilium-server"} == 1))'
"""0 if the server's exporter answers, else nothing: an event that is not counted is not an event that was not."""


def build() -> models.Dashboard:
    """Return the dashboard."""
    return frame(
        "federation",
        "Consilium: Federation",
        "Is the federation healthy, how far is the study, and who takes part?",
        {
            "Now": [_state(), _progress(), _online(), _alerts(), _failed_rounds(), _since_asked()],
            "Sites": [_sites(), _firing()],
            "The last round": [_cohort(), _rejected(), _settings()],
            "What has it told of patients?": [_spent(), _epsilon()],
            "Over time": [_states(), _connections(), _rounds()],
        },
    )


def _state() -> Panel:
    look = Look(
        "Is the study running?",
        "The state of the study's last run: waiting for sites, training, paused (too few sites answer), "
        "finishing (tests), finished, failed, stopped.",
        "none",
        (4, 5),
        names=STATES,
    )
    return single_value(look, Query(f"max by (state) (consilium_study_state{STUDY}) == 1", "{{state}}"), named=True)


def _progress() -> Panel:
    look = Look(
        "How far is the study?",
        "Completed rounds of those the study plans.",
        "none",
        (4, 5),
        decimals=0,
    )
    done = Query(f"max by (study) (consilium_study_round{STUDY})", "completed")
    return single_value(look, done, Query(f"max by (study) (consilium_study_rounds{STUDY})", "planned"))


def _online() -> Panel:
    look = Look(
        "How many sites are connected?",
        "Approved sites with an open connection to the server, and all approved sites.",
        "none",
        (4, 5),
        decimals=0,
    )
    return single_value(
        look, Query("sum(consilium_site_online)", "connected"), Query("count(consilium_site_online)", "approved")
    )


def _alerts() -> Panel:
    look = Look(
        "How many alerts fire?",
        "All alerts of Prometheus that fire now; the table below names them.",
        "none",
        (4, 5),
        decimals=0,
        steps=((None, BLUE), (1, RED)),
    )
    return single_value(look, Query('count(ALERTS{alertstate="firing"}) or vector(0)'))


def _failed_rounds() -> Panel:
    look = Look(
        "How many rounds failed?",
        "Rounds of all runs of the study that ended without new weights, too few usable updates above all.",
        "none",
        (4, 5),
        decimals=0,
        steps=((None, BLUE), (1, RED)),
    )
    return single_value(look, Query(f'sum(consilium_rounds_total{{study="$study", outcome="failed"}}) or {SEEN}'))


def _since_asked() -> Panel:
    look = Look(
        "How long has this round taken?",
        "Since the sites were asked in the round in progress; an alert fires after 15 minutes.",
        "s",
        (4, 5),
        steps=((None, BLUE), (600, AMBER), (900, RED)),
        empty="no round",
    )
    return single_value(look, Query(f"time() - max(consilium_round_started_timestamp_seconds{STUDY})"))


def _sites() -> Panel:
    look = Look(
        "Who is here, and who takes part?",
        "Approved sites. Rounds behind: completed rounds since the site's last accepted update. Weight: its share in "
        "the last round.",
        "short",
        (15, 9),
    )
    columns = {
        "site": Column("site"),
        "Value #A": Column("connected", "bool_yes_no", ((None, RED), (1, BLUE))),
        "Value #B": Column("last seen", "s", ((None, BLUE), (60, AMBER), (120, RED))),
        "Value #C": Column("last round"),
        "Value #D": Column("rounds behind", steps=((None, BLUE), (1, AMBER), (2, RED))),
        "Value #E": Column("weight", "percentunit"),
        "Value #F": Column("examples"),
        "Value #G": Column("rejected", steps=((None, BLUE), (1, RED))),
    }
    rejected = 'consilium_updates_total{study="$study", outcome="rejected"}'
    return rows(
        look,
        columns,
        Query("max by (site) (consilium_site_online)"),
        Query("time() - max by (site) (consilium_site_last_seen_timestamp_seconds)"),
        Query(f"max by (site) (consilium_site_round{STUDY})"),
        Query(f"max by (site) (study_site:consilium_site_round:behind{STUDY})"),
        Query(f"max by (site) (consilium_site_weight_ratio{STUDY})"),
        Query(f"max by (site) (consilium_site_examples{STUDY})"),
        Query(f"sum by (site) ({rejected})"),
    )


def _firing() -> Panel:
    look = Look(
        "Which alerts fire?",
        "Firing alerts with what they are about; Prometheus shows the full sentence of each.",
        "short",
        (9, 9),
        empty="no alert fires",
    )
    columns = {
        "alertname": Column("alert"),
        "severity": Column("severity"),
        "study": Column("study"),
        "site": Column("site"),
        "reason": Column("reason"),
    }
    return rows(
        look,
        columns,
        Query('count by (alertname, severity, study, site, reason) (ALERTS{alertstate="firing"})'),
    )


def _cohort() -> Panel:
    look = Look(
        "Did enough sites deliver?",
        "Sites of the last round: asked, answered, accepted (usable update), and how many the study needs.",
        "none",
        (8, 7),
        bounds=(0, None),
        decimals=0,
    )
    stages = [
        Query(f'max(consilium_cohort_sites{{study="$study", stage="{stage}"}})', stage)
        for stage in ("asked", "answered", "accepted")
    ]
    return bars(look, *stages, Query(f"max by (study) (consilium_study_quorum{STUDY})", "needed"))


def _rejected() -> Panel:
    look = Look(
        "Why were updates rejected?",
        "Rejected updates of all runs of the study, by reason and site; the server's event log has the sentences.",
        "none",
        (8, 7),
        bounds=(0, None),
        decimals=0,
        steps=((None, BLUE), (1, RED)),
        empty="none rejected",
    )
    counted = f"sum by (reason, site) (consilium_updates_rejected_total{STUDY})"
    return bars(look, Query(counted, "{{reason}} {{site}}"))


def _settings() -> Panel:
    look = Look(
        "What is being run?",
        "Run, personalisation method, strategy of the server, and codec of the last run.",
        "short",
        (8, 7),
    )
    columns = {name: Column(name) for name in ("run", "method", "strategy", "codec")}
    return rows(look, columns, Query(f"max by (run, method, strategy, codec) (consilium_study_info{STUDY})"))


def _spent() -> Panel:
    look = Look(
        "How much of the privacy budget is spent?",
        "Private studies: what each site's ledger says that the study has spent, of what it may spend there. An alert "
        "fires above 80 %.",
        "percentunit",
        (8, 7),
        bounds=(0, 1),
        decimals=0,
        steps=((None, BLUE), (0.8, AMBER), (1, RED)),
        empty="not private, or without a budget",
    )
    return bars(look, Query(f"max by (site) (study_site:consilium_site_privacy_epsilon:ratio{STUDY})", "{{site}}"))


def _epsilon() -> Panel:
    look = Look(
        "How large is epsilon at each site?",
        "What the study's answers can tell of one patient of a site, all its runs together, as the site's ledger says.",
        "none",
        (16, 7),
        bounds=(0, None),
        decimals=2,
        names=SITES,
        empty="not private",
    )
    return time_series(look, Query(f"max by (site) (consilium_site_privacy_epsilon_spent{STUDY})", "{{site}}"))


def _states() -> Panel:
    look = Look(
        "When did the study do what?",
        "The state of the study's last run over time.",
        "none",
        (12, 8),
    )
    numbers = {str(number): (state, COLOURS[state]) for number, state in enumerate(STATES, start=1)}
    terms = " + ".join(
        f'{number} * sum(consilium_study_state{{study="$study", state="{state}"}})'
        for number, (state, _) in numbers.items()
    )
    return timeline(look, Query(terms, "$study"), values=numbers)


def _connections() -> Panel:
    look = Look(
        "When was which site connected?",
        "Approved sites over time.",
        "none",
        (12, 8),
        steps=((None, RED), (1, BLUE)),
    )
    values = {"0": ("away", RED), "1": ("connected", BLUE)}
    return timeline(look, Query("max by (site) (consilium_site_online)", "{{site}}"), values=values)


def _rounds() -> Panel:
    look = Look(
        "Up to which round did each site contribute?",
        "The last round with an accepted update, per site; a flat line among rising ones is a site left behind.",
        "none",
        (24, 8),
        bounds=(0, None),
        decimals=0,
        names=SITES,
    )
    return time_series(look, Query(f"max by (site) (consilium_site_round{STUDY})", "{{site}}"))
