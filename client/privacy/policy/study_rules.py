"""Rules that need the study of a plan: its parts, its privacy, how much it trains, what it measures."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from consilium.client.privacy.policy.case import Case, Refuses
from consilium.common.errors import clean, listed
from consilium.common.study.signals import LIMITS

_MOST_NAMED = 10


def _only(what: str, allowed: Sequence[str], asked: Collection[str]) -> str | None:
    """Refuse names that a list does not have; an empty list has all."""
    outside = sorted(name for name in asked if allowed and name not in allowed)
    if not outside:
        return None
    return f"allows the {what} {listed(allowed, _MOST_NAMED)}, and is asked for {clean(listed(outside, _MOST_NAMED))}"


def methods(case: Case) -> str | None:
    """Refuse methods that the policy does not list."""
    return _only("methods", case.policy.methods, [case.asked.method.kind])


def strategies(case: Case) -> str | None:
    """Refuse strategies that the policy does not list."""
    return _only("strategies", case.policy.strategies, [case.asked.strategy.kind])


def weightings(case: Case) -> str | None:
    """Refuse weightings with a factor that the policy does not list."""
    return _only("weightings", case.policy.weightings, [factor.kind for factor in case.asked.weights_by.factors])


def models(case: Case) -> str | None:
    """Refuse models that the policy does not list."""
    return _only("models", case.policy.models, [case.asked.model.name])


def codecs(case: Case) -> str | None:
    """Refuse codecs, of either way, that the policy does not list."""
    return _only("codecs", case.policy.codecs, [codec.kind for codec in (*case.asked.uplink, *case.asked.downlink)])


def require_privacy(case: Case) -> str | None:
    """Refuse studies without noise for each patient."""
    if not case.policy.require_privacy or case.asked.privacy.examples is not None:
        return None
    return "obeys private studies only (privacy.examples), and this one is none"


def max_epsilon(case: Case) -> str | None:
    """Refuse a study whose own budget is larger than all that may be spent; the ledger refuses what adds up to more."""
    most, asked = case.policy.max_epsilon, case.asked.privacy.examples
    if asked is None or asked.epsilon is None or asked.epsilon <= most:
        return None
    return f"allows an epsilon of {most:g} in all, and the study is to spend {asked.epsilon:g}"


def max_delta(case: Case) -> str | None:
    """Refuse a study that sets a larger delta."""
    asked = case.asked.privacy.examples
    if asked is None or asked.delta is None or asked.delta <= case.policy.max_delta:
        return None
    return f"allows a delta of {case.policy.max_delta:g}, and the study has {asked.delta:g}"


def min_noise(case: Case) -> str | None:
    """Refuse a study that sets less noise; what an epsilon needs is compared where it is found."""
    asked = case.asked.privacy.examples
    if asked is None or asked.noise is None:
        return None
    return too_little_noise(case.policy.min_noise, asked.noise)


def too_little_noise(least: float | None, noise: float) -> str | None:
    """Return why a noise multiplier is too small; None if it is not."""
    if least is None or noise >= least:
        return None
    return f"asks for a noise multiplier of at least {least:g}, and the study has {noise:.4g}"


def unit(case: Case) -> str | None:
    """Refuse a study that protects rows where patients are to be protected."""
    asked = case.asked.privacy.examples
    if asked is None or case.policy.unit == "example" or asked.unit == "patient":
        return None
    return "asks for the protection of whole patients, and the study protects single rows (privacy.examples.unit)"


def require_secure_aggregation(case: Case) -> str | None:
    """Refuse studies in which the server sees this site's updates by themselves."""
    if not case.policy.require_secure_aggregation or case.asked.privacy.secure_aggregation:
        return None
    return "obeys studies with secure aggregation only (privacy.secure_aggregation), and this one has none"


def min_sites(case: Case) -> str | None:
    """Refuse studies of too few sites."""
    study, policy = case.asked, case.policy
    least = policy.least_of_sum if study.privacy.secure_aggregation else policy.min_sites
    number = study.num_sites or len(study.sites)
    return f"takes part with at least {least} sites in all, and the study has {number}" if number < least else None


def min_batch(case: Case) -> str | None:
    """Refuse gradients of too few rows: of small batches, and where fewer rows than that are trained on."""
    least, size = case.policy.min_batch, case.asked.training.batch_size
    if size < least:
        return f"trains on batches of at least {least} examples, and the study has batches of {size}"
    if case.num_examples is not None and case.num_train < least:
        return f"trains on batches of at least {least} examples, and the study leaves it fewer to train on"
    return None


def max_steps(case: Case) -> str | None:
    """Refuse rounds that are too long: of the training, and of what a method trains besides."""
    most, asked = case.policy.max_steps, _steps(case)
    return f"trains at most {most} steps in a round, and the study asks for {asked}" if asked > most else None


def _steps(case: Case) -> int:
    """Return the steps of a round; a pass over the examples counts as one step until these are known."""
    training = case.asked.training
    settings = {name: value for name, value in case.asked.method.model_dump().items() if isinstance(value, int)}
    each = -(-case.num_train // training.batch_size) or 1
    steps = training.steps or (training.epochs or 1) * each
    for name, value in settings.items():
        if name.endswith("_steps"):
            steps *= max(1, value)
    besides = [value * each for name, value in settings.items() if name.endswith("epochs")]
    return max(steps, settings.get("steps", 0), *besides)


def max_rounds(case: Case) -> str | None:
    """Refuse studies of too many rounds."""
    most, asked = case.policy.max_rounds, case.asked.rounds
    return f"takes part in at most {most} rounds of a study, and this one has {asked}" if asked > most else None


def kept_updates(case: Case) -> str | None:
    """Refuse a study whose coordinator keeps single updates on its disk."""
    if case.policy.kept_updates or not case.asked.keep_updates:
        return None
    return "obeys no study in which the coordinator keeps its updates (keep_updates)"


def metrics(case: Case) -> str | None:
    """Refuse a study that needs a metric which may not leave, or is stopped by it; others are left out of replies."""
    stopping = case.asked.stopping
    names = {name for name in case.asked.needs if name in LIMITS} | ({stopping.measured} if stopping else set())
    needed = sorted(name for name in names if not allowed(name, case.policy.metrics))
    if not needed:
        return None
    leaving = listed(case.policy.metrics, _MOST_NAMED) or "none"
    return f"lets of the metrics leave: {leaving}; the study needs {', '.join(needed)}"


def allowed(name: str, globs: Sequence[str]) -> bool:
    """Return whether a name fits one of the globs."""
    return any(glob == "*" or fnmatchcase(name, glob) for glob in globs)


def min_examples(case: Case) -> str | None:
    """Refuse to take part with too few examples; how many there are is not said."""
    if case.num_examples is None or case.num_examples >= case.policy.min_examples:
        return None
    return f"takes part with at least {case.policy.min_examples} examples, and holds fewer"


def forbidden_arrays(case: Case) -> str | None:
    """Refuse a study whose method shares an array that never leaves."""
    patterns = [pattern.lower() for pattern in case.policy.forbidden_arrays]  # `Head.*` forbids no less than `head.*`
    leaving = sorted(name for name in case.shared if allowed(name.lower(), patterns))
    return f"never lets these arrays leave, which the study shares: {listed(leaving, _MOST_NAMED)}" if leaving else None


OF_THE_STUDY: tuple[Refuses, ...] = (
    *(methods, strategies, weightings, models, codecs),
    *(require_privacy, max_epsilon, max_delta, min_noise, unit),
    *(require_secure_aggregation, kept_updates, min_sites, min_batch, max_steps, max_rounds, metrics),
)
"""Applied to the study as soon as it is known."""
OF_THE_DATA: tuple[Refuses, ...] = (min_examples, min_batch, max_steps, forbidden_arrays)
"""Applied once the site's data is read and its model built."""
