"""Sites: one site, as the server sees it and as it sees itself."""

from grafana_foundation_sdk.models import dashboard as models

from dashboards.source.panels import (
    AMBER,
    BLUE,
    MODELS,
    RED,
    Look,
    Panel,
    Query,
    bars,
    frame,
    single_value,
    time_series,
)

HERE = '{study="$study", site="$site"}'
ITSELF = '(0 * max(up{job="consilium-site", site="$site"} == 1))'
"""0 if the site's exporter answers, else nothing."""


def build() -> models.Dashboard:
    """Return the dashboard."""
    return frame(
        "sites",
        "Consilium: Sites",
        "One site: what it gets from the federation, and what it puts in.",
        {
            "Told by the server": [_connected(), _behind(), _weight(), _gain(), _rejected(), _seen(), _certificate()],
            "What the site gets": [_accuracy(), _loss()],
            "Told by the site itself": [_examples(), _epochs(), _busy(), _errors()],
            "What the site does": [_own_accuracy(), _work(), _bytes(), _weights()],
            "What the site's ledger says": [_own_epsilon(), _own_budget()],
        },
        by_site=True,
    )


def _connected() -> Panel:
    look = Look(
        "Is the site connected?",
        "Whether the server has an open connection to the site.",
        "bool_yes_no",
        (3, 4),
        steps=((None, RED), (1, BLUE)),
    )
    return single_value(look, Query('max(consilium_site_online{site="$site"})'))


def _behind() -> Panel:
    look = Look(
        "How many rounds is it behind?",
        "Completed rounds since the site's last accepted update; an alert fires from 2 on if all sites are asked.",
        "none",
        (3, 4),
        decimals=0,
        steps=((None, BLUE), (1, AMBER), (2, RED)),
    )
    return single_value(look, Query(f"max(study_site:consilium_site_round:behind{HERE})"))


def _weight() -> Panel:
    look = Look(
        "How much does it count?",
        "The share of the site's update in the new global weights of the last round.",
        "percentunit",
        (3, 4),
        bounds=(0, 1),
        decimals=1,
    )
    return single_value(look, Query(f"max(consilium_site_weight_ratio{HERE})"))


def _gain() -> Panel:
    look = Look(
        "Does taking part pay?",
        "Accuracy of the model the site serves minus that of one trained on its own data alone, on its validation "
        "split. Below 0 the site would be better off alone; small splits are noisy.",
        "percentunit",
        (4, 4),
        bounds=(-1, 1),
        decimals=1,
        steps=((None, RED), (-0.05, AMBER), (0, BLUE)),
    )
    return single_value(look, Query(f"max(study_site:consilium_site_accuracy_ratio:personal_minus_local{HERE})"))


def _rejected() -> Panel:
    look = Look(
        "How many updates were rejected?",
        "Rejected updates of the site in all runs of the study.",
        "none",
        (4, 4),
        decimals=0,
        steps=((None, BLUE), (1, RED)),
    )
    return single_value(look, Query('sum(consilium_updates_total{study="$study", site="$site", outcome="rejected"})'))


def _seen() -> Panel:
    look = Look(
        "When was it last connected?",
        "Time since the site was last connected to the server.",
        "s",
        (3, 4),
        steps=((None, BLUE), (60, AMBER), (120, RED)),
    )
    return single_value(look, Query('time() - max(consilium_site_last_seen_timestamp_seconds{site="$site"})'))


def _certificate() -> Panel:
    look = Look(
        "How long is its certificate valid?",
        "Time until the site's certificate ends; while it is connected it gets a new one 30 days before. An alert "
        "fires below 14 days.",
        "s",
        (4, 4),
        steps=((None, RED), (14 * 86400, AMBER), (28 * 86400, BLUE)),
    )
    ends = 'min(consilium_site_certificate_expiry_timestamp_seconds{site="$site"})'
    return single_value(look, Query(f"{ends} - time()"))


def _accuracy() -> Panel:
    look = Look(
        "Is the served model more accurate than one trained alone?",
        "Accuracy on the site's validation split: global weights as they arrive, personal (what the site serves), "
        "local (its own data alone), train (served model on its training examples).",
        "percentunit",
        (12, 10),
        bounds=(0, 1),
        decimals=1,
        names=MODELS,
    )
    return time_series(look, Query(f"max by (model) (consilium_site_accuracy_ratio{HERE})", "{{model}}"))


def _loss() -> Panel:
    look = Look(
        "Does the loss fall?",
        "Loss on the site's validation split; `train` is the loss while training. A validation loss that rises "
        "while `train` falls is overfitting.",
        "none",
        (12, 10),
        bounds=(0, None),
        decimals=3,
        names=MODELS,
    )
    return time_series(look, Query(f"max by (model) (consilium_site_loss{HERE})", "{{model}}"))


def _examples() -> Panel:
    look = Look(
        "How many examples does it have?",
        "Examples per split, told by the site's own exporter.",
        "short",
        (8, 6),
        bounds=(0, None),
        decimals=0,
    )
    return bars(look, Query(f"max by (split) (consilium_node_examples{HERE})", "{{split}}"))


def _epochs() -> Panel:
    look = Look(
        "How long has it trained?",
        "Passes over the site's training examples in this study.",
        "none",
        (5, 6),
        decimals=0,
    )
    return single_value(look, Query(f"sum(consilium_node_epochs_total{HERE})", "epochs"))


def _busy() -> Panel:
    look = Look(
        "How busy is it?",
        "Share of the time in which the site works on plans of this study.",
        "percentunit",
        (6, 6),
        bounds=(0, 1),
        decimals=1,
    )
    return single_value(
        look, Query(f"sum(rate(consilium_node_work_seconds_total{HERE}[$__rate_interval]))"), spark=True
    )


def _errors() -> Panel:
    look = Look(
        "Did plans fail at the site?",
        "Plans that the site could not answer, by kind of error; its own log has the sentences.",
        "none",
        (5, 6),
        decimals=0,
        steps=((None, BLUE), (1, RED)),
    )
    return single_value(look, Query(f'sum(consilium_node_errors_total{{site="$site"}}) or {ITSELF}'))


def _own_accuracy() -> Panel:
    look = Look(
        "Does the site measure the same itself?",
        "Accuracy as the site's own exporter tells it; it should be the picture above, told by the server.",
        "percentunit",
        (12, 9),
        bounds=(0, 1),
        decimals=1,
        names=MODELS,
    )
    return time_series(look, Query(f"max by (model) (consilium_node_accuracy_ratio{HERE})", "{{model}}"))


def _work() -> Panel:
    look = Look(
        "Where does its time go?",
        "Seconds of work per second, by kind of plan.",
        "percentunit",
        (12, 9),
        bounds=(0, None),
    )
    work = f"sum by (kind) (rate(consilium_node_work_seconds_total{HERE}[$__rate_interval]))"
    return time_series(look, Query(work, "{{kind}}"), stacked=True)


def _own_epsilon() -> Panel:
    look = Look(
        "How large is epsilon here?",
        "What the study's answers can tell of one patient of this site, all its runs together: told by the site's own "
        "exporter.",
        "none",
        (16, 7),
        bounds=(0, None),
        decimals=2,
        empty="not private",
    )
    return time_series(look, Query(f"max by (site) (consilium_node_privacy_epsilon_spent{HERE})", "epsilon"))


def _own_budget() -> Panel:
    look = Look(
        "How much may still be told?",
        "What is left of the study's privacy budget at this site, and the whole budget.",
        "none",
        (8, 7),
        decimals=2,
        empty="not private, or without a budget",
    )
    left = f"max(consilium_node_privacy_epsilon_budget{HERE} - consilium_node_privacy_epsilon_spent{HERE})"
    return single_value(look, Query(left, "left"), Query(f"max(consilium_node_privacy_epsilon_budget{HERE})", "budget"))


def _bytes() -> Panel:
    look = Look(
        "How much does it send and receive?",
        "Payload bytes per second: up to the server, down from it. Examples never leave the site.",
        "Bps",
        (12, 8),
        bounds=(0, None),
        names=("up", "down"),
    )
    rate = f"sum by (direction) (rate(consilium_node_transfer_bytes_total{HERE}[$__rate_interval]))"
    return time_series(look, Query(rate, "{{direction}}"))


def _weights() -> Panel:
    look = Look(
        "How did its weight develop?",
        "The share of the site's update in the new global weights, round by round.",
        "percentunit",
        (12, 8),
        bounds=(0, 1),
        decimals=1,
        names=("weight",),
    )
    return time_series(look, Query(f"max by (site) (consilium_site_weight_ratio{HERE})", "weight"))
