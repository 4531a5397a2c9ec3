"""Learning: does it get better, and for whom."""

from grafana_foundation_sdk.models import dashboard as models

from dashboards.source.panels import (
    AMBER,
    BLUE,
    MODELS,
    RED,
    SITES,
    Look,
    Panel,
    Query,
    bars,
    frame,
    single_value,
    time_series,
)

STUDY = '{study="$study"}'
SERVED = '{study="$study", model="personal"}'
FAIRNESS = ("mean", "worst site", "best minus worst")


def build() -> models.Dashboard:
    """Return the dashboard."""
    return frame(
        "learning",
        "Consilium: Learning",
        "Do the models get better, and do all sites have a share in it?",
        {
            "Now": [_now(), _gains()],
            "Do the models get better?": [_served(), _global(), _losses(), _mean_accuracy()],
            "Is it fair?": [_fairness(), _gain_over_time()],
            "What the server does": [_weights(), _norm(), _signals(), _fallbacks()],
        },
    )


def _now() -> Panel:
    look = Look(
        "How good are the served models?",
        "Accuracy of the personal models on the validation splits: mean of the sites, worst site, and the distance "
        "between best and worst.",
        "percentunit",
        (12, 6),
        bounds=(0, 1),
        decimals=1,
    )
    return single_value(
        look,
        Query(f"max(study_model:consilium_site_accuracy_ratio:avg{SERVED})", "mean"),
        Query(f"max(study_model:consilium_site_accuracy_ratio:min{SERVED})", "worst site"),
        Query(f"max(study_model:consilium_site_accuracy_ratio:spread{SERVED})", "best minus worst"),
    )


def _gains() -> Panel:
    look = Look(
        "For whom does taking part pay?",
        "Accuracy of the served model minus that of one trained on the site's data alone. Below 0 the site would be "
        "better off alone; small validation splits are noisy.",
        "percentunit",
        (12, 6),
        bounds=(-0.5, 0.5),
        decimals=1,
        steps=((None, RED), (-0.05, AMBER), (0, BLUE)),
    )
    gain = f"max by (site) (study_site:consilium_site_accuracy_ratio:personal_minus_local{STUDY})"
    return bars(look, Query(gain, "{{site}}"))


def _accuracy(title: str, description: str, model: str) -> Panel:
    look = Look(title, description, "percentunit", (12, 9), bounds=(0, 1), decimals=1, names=SITES)
    chosen = f'{{study="$study", model="{model}"}}'
    return time_series(look, Query(f"max by (site) (consilium_site_accuracy_ratio{chosen})", "{{site}}"))


def _served() -> Panel:
    return _accuracy(
        "How accurate is the model each site serves?",
        "Accuracy of the personal model on the site's validation split.",
        "personal",
    )


def _global() -> Panel:
    return _accuracy(
        "How accurate are the global weights at each site?",
        "Accuracy of the global weights as they arrive, before the site trains, on its validation split.",
        "global",
    )


def _losses() -> Panel:
    look = Look(
        "Does the mean loss fall?",
        "Mean over the sites of the loss, by model; an alert fires if that of the global weights rises for long.",
        "none",
        (12, 9),
        bounds=(0, None),
        decimals=3,
        names=MODELS,
    )
    return time_series(look, Query(f"max by (model) (study_model:consilium_site_loss:avg{STUDY})", "{{model}}"))


def _mean_accuracy() -> Panel:
    look = Look(
        "Which model is best on average?",
        "Mean over the sites of the accuracy, by model.",
        "percentunit",
        (12, 9),
        bounds=(0, 1),
        decimals=1,
        names=MODELS,
    )
    mean = f"max by (model) (study_model:consilium_site_accuracy_ratio:avg{STUDY})"
    return time_series(look, Query(mean, "{{model}}"))


def _fairness() -> Panel:
    look = Look(
        "Does the worst site keep up?",
        "Accuracy of the served models: mean, worst site, best minus worst. A mean that rises while the distance "
        "grows leaves a site behind.",
        "percentunit",
        (12, 9),
        bounds=(0, 1),
        decimals=1,
        names=FAIRNESS,
    )
    return time_series(
        look,
        Query(f"max(study_model:consilium_site_accuracy_ratio:avg{SERVED})", "mean"),
        Query(f"max(study_model:consilium_site_accuracy_ratio:min{SERVED})", "worst site"),
        Query(f"max(study_model:consilium_site_accuracy_ratio:spread{SERVED})", "best minus worst"),
    )


def _gain_over_time() -> Panel:
    look = Look(
        "When did taking part begin to pay?",
        "Accuracy of the served model minus that of one trained alone, per site. Below the dashed line an alert fires.",
        "percentunit",
        (12, 9),
        decimals=1,
        soft=(-0.2, 0.2),
        steps=((None, BLUE), (-0.05, RED)),
        names=SITES,
    )
    gain = f"max by (site) (study_site:consilium_site_accuracy_ratio:personal_minus_local{STUDY})"
    return time_series(look, Query(gain, "{{site}}"))


def _weights() -> Panel:
    look = Look(
        "How much does each site count?",
        "Shares of the sites' updates in the new global weights; together 100 %.",
        "percentunit",
        (12, 9),
        bounds=(0, 1),
        decimals=1,
        names=SITES,
    )
    return time_series(look, Query(f"max by (site) (consilium_site_weight_ratio{STUDY})", "{{site}}"), stacked=True)


def _norm() -> Panel:
    look = Look(
        "Do the global weights still move?",
        "Euclidean norm of the last change of the global weights. It falls as training settles.",
        "none",
        (12, 9),
        bounds=(0, None),
        names=("norm",),
    )
    return time_series(look, Query(f"max(consilium_update_norm{STUDY})", "norm"))


def _signals() -> Panel:
    look = Look(
        "What were the weights made from?",
        "The factors that entered the product in the last round, per site; the share is the product of the factors, "
        "each to its exponent, divided by the sum over the sites.",
        "none",
        (12, 9),
    )
    factors = STUDY.replace("}", ', signal=~".*[.]factor"}')
    return time_series(
        look, Query(f"max by (site, signal) (consilium_site_weight_signal{factors})", "{{site}} {{signal}}")
    )


def _fallbacks() -> Panel:
    look = Look(
        "Was every round weighted as the study says?",
        "Rounds that were weighted by size, or equally, because a signal was missing; the run's log says which.",
        "none",
        (12, 9),
        bounds=(0, None),
    )
    return time_series(look, Query(f"max(consilium_weighting_fallbacks_total{STUDY})", "fallbacks"))
