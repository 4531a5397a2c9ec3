"""How long an update may be: one beyond the bound is shortened to it, one beyond belief rejected; both are named.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019, section 4 (norm thresholding),
https://arxiv.org/abs/1911.07963; the bound by the round's own median is ours.

Site k's update of s_k local steps is compared with what is usual for it:

    usual_k = median over sites j of  |delta_j| * max(1, min(s_k / s_j, MOST_STEPS))

Steps are those that follow from the announced examples. An honest update grows with its steps, at most in proportion,
and it need not shrink with fewer, so a site is given what more steps may make, and nothing is taken from one with few.
A minority moves no median out of what the others sent, so with `factor` F no update is longer than F times an honest
one's.

Why F = 3. The bound is for what is much too long; where an update points is for `directions.py`. A lower one costs
hospitals with unusual patients: of FLamby's four heart hospitals one has 45 ill patients of 46, and sends up to 3.2
times what is usual in most rounds. A higher one costs more where a site lies: let a part e of equal shares be of bad
sites, and the honest updates of length m point one way but for a cosine c. The worst that they can do to the mean is to
send -F m along it, and it keeps its direction while (1 - e) c > e F: with F = 3 and one site of five for c > 0.75. Two
of seven can turn it, for as many rounds as `defence.against` says. What both cost is in docs/auditor/lies.md. Where
nothing is longer, nothing is multiplied by 1: an honest round is computed as if there were no bound.

Arrays of three kinds have a bound each: those that gradients move, running statistics, and control variates. With fewer
than FEWEST updates a median says little, and with a median of 0 nothing: then only what no training gives is rejected,
a change of the arrays BELIEVED times as large as the weights themselves, or as weights of 1.

The rejected are found by the median of all updates, and the others shortened by the median of those that are left: so
an auditor who has the updates that counted computes the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from consilium.common.study.defence import FixedNorm, MedianNorm, NoNorm, NormConfig
from consilium.common.study.pace import BufferedPace
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import TrainingConfig
from consilium.common.weights.arithmetic import dot
from consilium.common.weights.arrays import Array, Weights, is_float, spec
from consilium.common.weights.scaled import Scaled
from consilium.server.strategies import ServerState, Update

Floats = npt.NDArray[np.float64]

FEWEST = 4
"""Updates from which on their median says what is usual."""
BELIEVED = 1e6
"""How many times its weights' own size a change may be where no median says what is usual."""
MOST_STEPS = 10.0
"""How much longer an update may be for more local steps, at most: a site announces its examples itself."""
MOST_COUNTED = 2.0**53
"""Largest change of a whole number; a mean of larger ones is not exact."""


@dataclass(frozen=True)
class Lengths:
    """Euclidean norms of one update, or bounds on them.

    Args:
        trained: over the arrays that gradients move.
        statistics: over all other floating-point arrays; infinite where a whole number is too large.
        control: over the change of the control variate.
    """

    trained: float
    statistics: float
    control: float

    def times(self, factor: float) -> "Lengths":
        """Return all of them, so many times."""
        return Lengths(*(factor * each for each in self.all))

    @property
    def all(self) -> tuple[float, float, float]:
        """The three, in their order."""
        return self.trained, self.statistics, self.control


KINDS = ("update", "update of running statistics", "change of the control variate")
"""What each of the three is, in words."""


def norm_of(config: StudyConfig) -> NormConfig:
    """Return a study's bound on updates: its own, or the default."""
    if config.defence.norm is not None and not (config.relays and isinstance(config.defence.norm, MedianNorm)):
        return config.defence.norm
    # A relay bounds the updates of its sites by their median, before it sends on their mean.
    sums_only = config.privacy.secure_aggregation or config.privacy.sites is not None or bool(config.relays)
    # Krum and the trimmed mean leave bad updates out by themselves, and cannot go on with fewer updates than they need.
    counts_on_all = config.strategy.least_sites > 1
    return NoNorm() if sums_only or counts_on_all else MedianNorm()


def can_undo(config: StudyConfig) -> bool:
    """Return whether a round of a study can be run again without the site that made its step (`undo.py`)."""
    hidden = config.privacy.secure_aggregation or config.privacy.sites is not None or bool(config.relays)
    together = not isinstance(config.schedule, BufferedPace) and config.strategy.of_mean
    return config.defence.undo and config.defence.strikes > 0 and together and not hidden


def lengths_of(update: Update, state: ServerState) -> Lengths:
    """Return how long an update is; to 9 digits, so that they do not hang on where an array lies in memory."""
    rest = [name for name in state.averaged if np.issubdtype(spec(update.delta, name)[1], np.floating)]
    whole = [name for name in state.averaged if name not in rest]
    too_large = any(_largest(update.delta[name]) > MOST_COUNTED for name in whole)
    statistics = math.inf if too_large else _norm(update.delta, rest)
    return Lengths(_norm(update.delta, state.optimised), statistics, _norm(update.control, update.control))


def too_long(config: StudyConfig, state: ServerState, sent: Mapping[str, tuple[int, Lengths]]) -> dict[str, str]:
    """Return a sentence on each site whose update is beyond belief.

    Args:
        sent: training examples and lengths of each site's update.
    """
    norm = norm_of(config)
    if isinstance(norm, NoNorm):
        return {}
    beyond = norm.reject / (norm.factor if isinstance(norm, MedianNorm) else 1.0)
    most = _believed(state)
    refused: dict[str, str] = {}
    for site, bound in _bounds(norm, config.training, state, sent).items():
        allowed = Lengths(*(min(beyond * of, limit) for of, limit in zip(bound.all, most.all, strict=True)))
        for kind, length, limit in zip(KINDS, sent[site][1].all, allowed.all, strict=True):
            if length > limit:
                refused[site] = (
                    f"site '{site}': its {kind} has the length {length:.3g}, expected at most {limit:.3g} "
                    "(defence.norm): the site's training may have failed, or the numbers are made up"
                )
                break
    return refused


def shortened(
    config: StudyConfig, state: ServerState, updates: Sequence[Update], lengths: Mapping[str, Lengths] | None = None
) -> tuple[Sequence[Update], dict[str, float]]:
    """Return the updates with those that are too long shortened, and by which factor each of these was.

    Args:
        lengths: of the updates, where they are known.
    """
    norm = norm_of(config)
    if isinstance(norm, NoNorm):
        return updates, {}
    known = lengths or {update.site: lengths_of(update, state) for update in updates}
    sent = {update.site: (update.num_examples, known[update.site]) for update in updates}
    bounds = _bounds(norm, config.training, state, sent)
    factors = {site: _factors(sent[site][1], bound) for site, bound in bounds.items()}
    least = {site: min(each) for site, each in factors.items() if min(each) < 1}
    if not least:
        return updates, {}
    return [_shorter(each, state, factors[each.site]) if each.site in least else each for each in updates], least


def _bounds(
    norm: MedianNorm | FixedNorm,
    training: TrainingConfig,
    state: ServerState,
    sent: Mapping[str, tuple[int, Lengths]],
) -> dict[str, Lengths]:
    """Return how long each site's update may be without being shortened; infinite where nothing says it."""
    if isinstance(norm, FixedNorm):
        return dict.fromkeys(sent, Lengths(norm.bound, math.inf, math.inf))
    if len(sent) < FEWEST:
        return dict.fromkeys(sent, Lengths(math.inf, math.inf, math.inf))
    steps = {site: _steps(training, examples) for site, (examples, _) in sent.items()}
    counts = np.array([*steps.values()])
    columns = np.array([lengths.all for _, lengths in sent.values()])
    usual = {count: _usual(columns, np.clip(count / counts, 1, MOST_STEPS)) for count in {*steps.values()}}
    return {site: usual[count].times(norm.factor) for site, count in steps.items()}


def _usual(lengths: Floats, more: Floats) -> Lengths:
    """Return the median of each kind of length, those of other sites made longer for more steps."""
    medians = [float(f"{float(np.median(lengths[:, kind] * more)):.9g}") for kind in range(len(KINDS))]
    return Lengths(*(middle or math.inf for middle in medians))


def _steps(training: TrainingConfig, examples: int) -> float:
    """Return the local steps of a round that follow from the examples that a site announced."""
    if training.steps is not None:
        return float(training.steps)
    assert training.epochs is not None
    return float(training.epochs * max(1, math.ceil(examples / training.batch_size)))


def _believed(state: ServerState) -> Lengths:
    """Return what no training exceeds."""

    def of(names: Iterable[str]) -> float:
        floats = [name for name in names if is_float(state.weights[name])]
        size = sum(state.weights[name].size for name in floats)
        return BELIEVED * max(_norm(state.weights, floats), math.sqrt(max(1, size)))

    trained = of(state.optimised)
    return Lengths(trained, of(state.averaged), trained)


def _factors(lengths: Lengths, bound: Lengths) -> tuple[float, float, float]:
    trained, statistics, control = (
        1.0 if length <= most else most / length for length, most in zip(lengths.all, bound.all, strict=True)
    )
    return trained, statistics, control


def _shorter(update: Update, state: ServerState, factors: tuple[float, float, float]) -> Update:
    """Return an update times its factors; arrays with a factor of 1 as they are."""
    trained, statistics, control = factors
    floats = [name for name in state.averaged if is_float(state.weights[name])]
    delta = (dict.fromkeys(state.optimised, trained) if trained < 1 else {}) | (
        dict.fromkeys(floats, statistics) if statistics < 1 else {}
    )
    return replace(
        update,
        delta=Scaled(update.delta, delta) if delta else update.delta,
        control=Scaled(update.control, dict.fromkeys(update.control, control)) if control < 1 else update.control,
    )


def _norm(weights: Weights, names: Iterable[str]) -> float:
    with np.errstate(over="ignore"):  # a sum that is too large is infinite, and longer than any bound
        return float(f"{math.sqrt(dot(weights, weights, names)):.9g}")


def _largest(array: Array) -> float:
    return float(np.abs(array.astype(np.float64)).max()) if array.size else 0.0
