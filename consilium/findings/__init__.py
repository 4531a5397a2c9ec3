"""What the numbers of a study allow to say: intervals, p-values, verdicts and sentences, for every page alike.

The estimand of a difference: the expected score of what a site would serve if it joined, minus the same if it stayed
alone, over redraws of its test patients and of the training randomness (seeds). With one seed there is nothing to see
of that randomness: the two models at hand are compared, over redraws of test patients only. Over splits, training
patients are redrawn too. Sites are the ones of the study: they are not redrawn.
"""

from consilium.common.intervals.evidence import Evidence, redrawn
from consilium.common.intervals.holm import holm
from consilium.common.intervals.interval import ALPHA, LEVEL, Interval
from consilium.common.intervals.means import LEAST_SPLITS, interval_of, over_sites, over_splits, paired, share_of
from consilium.common.protocol.patients import LEAST_PATIENTS, Patients
from consilium.findings.counts import (
    ACCURACIES,
    DIFFERENCE,
    MEASURES,
    Findings,
    Measures,
    brier_scores,
    findings_of,
)
from consilium.findings.verdict import ESTIMAND, Verdict, sentence, verdict

__all__ = [
    "ACCURACIES",
    "ALPHA",
    "DIFFERENCE",
    "ESTIMAND",
    "LEAST_PATIENTS",
    "LEAST_SPLITS",
    "LEVEL",
    "MEASURES",
    "Evidence",
    "Findings",
    "Interval",
    "Measures",
    "Patients",
    "Verdict",
    "brier_scores",
    "findings_of",
    "holm",
    "interval_of",
    "over_sites",
    "over_splits",
    "paired",
    "redrawn",
    "sentence",
    "share_of",
    "verdict",
]
