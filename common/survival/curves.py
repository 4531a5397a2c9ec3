"""Curves over time: who is left without the event, by Kaplan and Meier, or by Cox's model with Breslow's hazard.

Kaplan, Meier, "Nonparametric Estimation from Incomplete Observations", JASA 1958, doi:10.1080/01621459.1958.10501452:

    S(t) = product over times s <= t of (1 - d_s / n_s)

with d_s events at s, of the n_s patients who were seen until s or longer. Breslow, discussion of Cox, JRSS B 1972,
doi:10.1111/j.2517-6161.1972.tb00900.x, for patients with log risks r, of whom R_s are at risk at s:

    H_0(t) = sum over times s <= t of d_s / sum over j in R_s of exp(r_j)         S(t | r) = exp(-H_0(t) exp(r))

Graf, Schmoor, Sauerbrei, Schumacher, "Assessment and comparison of prognostic classification schemes for survival
data", Statistics in Medicine 1999, with the curve G of being censored:

    Brier(t) = mean of S(t | r_i)^2 [t_i <= t, event] / G(t_i) + (1 - S(t | r_i))^2 [t_i > t] / G(t)
"""

from dataclasses import dataclass

import numpy as np

from consilium.common.survival.times import Floats, Times


@dataclass(frozen=True, eq=False)
class Steps:
    """A curve that changes at some times and stays in between.

    Args:
        first: its value before the first of them.
        times: where it changes `(K,)`, rising.
        values: its value from each on `(K,)`.
    """

    first: float
    times: Floats
    values: Floats

    def at(self, times: Floats) -> Floats:
        """Return the values at times `(N,)`."""
        values = np.concatenate([[self.first], self.values])
        return np.asarray(values[np.searchsorted(self.times, times, side="right")], dtype=np.float64)


def kaplan_meier(of: Times) -> Steps:
    """Return the share of patients without the event, from 1 on."""
    times, index, sizes = np.unique(of.times, return_inverse=True, return_counts=True)
    at_risk = sizes[::-1].cumsum()[::-1]
    events = np.bincount(index, weights=of.events, minlength=len(times))
    return Steps(1.0, times, np.cumprod(1 - events / at_risk))


def censoring(of: Times) -> Steps:
    """Return the share of patients who are not censored, from 1 on; who has the event at a time has it before that."""
    times, index, sizes = np.unique(of.times, return_inverse=True, return_counts=True)
    at_risk = sizes[::-1].cumsum()[::-1].astype(np.float64)
    events = np.bincount(index, weights=of.events, minlength=len(times))
    left, gone = at_risk - events, sizes - events
    return Steps(1.0, times, np.cumprod(1 - np.divide(gone, left, out=np.zeros_like(left), where=left > 0)))


def breslow(of: Times, risks: Floats) -> Steps:
    """Return the cumulative hazard of a patient of log risk 0, from those of training patients `(N,)`."""
    times, index = np.unique(of.times, return_inverse=True)
    sums = np.bincount(index, weights=np.exp(risks), minlength=len(times))[::-1].cumsum()[::-1]
    events = np.bincount(index, weights=of.events, minlength=len(times))
    return Steps(0.0, times, np.cumsum(events / sums))


def log_hazard(horizon: float, training: Times, risks: Floats) -> float:
    """Return the log of `breslow` at a time, from the log risks of training patients `(N,)`, N >= 1.

    -inf where no event was seen by then. With the log, risks of hundreds do not overflow.
    """
    most = float(risks.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        hazard = breslow(training, risks - most).at(np.array([horizon]))[0]
        return float(np.log(hazard)) - most


def survival_at(hazard: float, risks: Floats) -> Floats:
    """Return the chance `(N,)` that patients of log risks `(N,)` have no event until the time of a `log_hazard`."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-np.exp(hazard + risks)), dtype=np.float64)


def brier_losses(horizon: float, of: Times, survival: Floats, *, training: Times) -> Floats | None:
    """Return what each patient adds `(N,)` to the Brier score at a time, their mean; smaller is better.

    Args:
        survival: the chance that each patient has no event until the horizon `(N,)`.
        training: the patients whose censoring the weights are of.

    None where no training patient was seen until the horizon, or all were censored before a patient's event.
    """
    if not len(of) or not (training.times >= horizon).any() or not np.isfinite(survival).all():
        return None
    curve = censoring(training)
    later, left = of.times > horizon, float(curve.at(np.array([horizon]))[0])
    seen = of.events & ~later
    own = curve.at(of.times)
    if (later.any() and left <= 0) or (own[seen] <= 0).any():
        return None
    losses = np.zeros(len(of))
    losses[seen] = survival[seen] ** 2 / own[seen]
    losses[later] = (1 - survival[later]) ** 2 / left if later.any() else 0.0
    return losses
