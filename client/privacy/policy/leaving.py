"""What the policy lets leave in a reply: metrics by name and digits, counts by their least cell."""

from collections.abc import Iterable

from consilium.client.privacy.policy.study_rules import allowed
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.counts import ROUNDING, Estimate, Estimates, TestCounts
from consilium.common.protocol.replies import FinishReply, HandshakeReply, Reply, RoundReply
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.signals import EFFECTIVE_STEPS


def as_it_leaves(reply: Reply, policy: PolicyConfig, *, noised: bool) -> Reply:
    """Return a reply without what the policy keeps at the site.

    Args:
        noised: whether its counts have noise, which protects small ones better than leaving them out.
    """
    match reply:
        case HandshakeReply() if not noised:
            return reply.model_copy(update={"card": _card(reply.card, policy.least_count)})
        case RoundReply():
            return reply.model_copy(update={"metrics": _metrics(reply.metrics, policy)})
        case FinishReply():
            return reply.model_copy(update={"test": _test(reply.test, policy, noised=noised)})
        case _:
            return reply


def _metrics(metrics: dict[str, float], policy: PolicyConfig) -> dict[str, float]:
    return {name: _rounded(name, value, policy) for name, value in metrics.items() if allowed(name, policy.metrics)}


def _rounded(name: str, value: float, policy: PolicyConfig) -> float:
    """Return a metric with the digits that may leave; a number of steps is the study's own, and stays exact."""
    if name == EFFECTIVE_STEPS:
        return value
    return float(f"{value:.{policy.metric_digits}g}")


def _card(card: DataCard, least: int) -> DataCard:
    """Return a card without its class counts, or its counts of labels, if one of them, or of the others, is small."""
    own = card.num_examples - (card.num_test if card.test_digest else 0)
    classes = [count for of in (card.class_counts or {}).values() for count in (of, own - of)]
    labels = [count for both in (card.label_counts or {}).values() for count in (*both, own - sum(both))]
    if not _is_small([*classes, *labels], least):
        return card
    return card.model_copy(update={"class_counts": None, "label_counts": None, "label_noise": None})


def _test(test: TestCounts, policy: PolicyConfig, *, noised: bool) -> TestCounts:
    """Return test counts without the constant answer's where these, which are of classes, may not leave."""
    if test.estimates is not None:
        brier = None if test.brier is None else _estimates(test.brier, policy)
        return test.model_copy(update={"estimates": _estimates(test.estimates, policy), "brier": brier})
    if test.majority is None:
        return test
    cells = (test.majority, test.num_test - test.majority)
    if policy.share_majority and (noised or not _is_small(cells, policy.least_count)):
        return test
    patients = None if test.patients is None else test.patients.model_copy(update={"majority": None})
    return test.model_copy(update={"majority": None, "patients": patients})


def _estimates(of: Estimates, policy: PolicyConfig) -> Estimates:
    """Return estimates with the digits that may leave, and without the constant answer's where it may not.

    Where two scores have so few digits that their difference contradicts them, it stays.
    """
    digits = policy.metric_digits
    known = {name: one for name in Estimates.model_fields if (one := getattr(of, name)) is not None}
    told = {
        name: Estimate(value=float(f"{one.value:.{digits}g}"), error=float(f"{one.error:.{digits}g}"))
        for name, one in known.items()
        if policy.share_majority or name != "majority"
    }
    moved = told.get("difference")
    if moved is not None and abs(moved.value - (told["personal"].value - told["local"].value)) > ROUNDING:
        del told["difference"]
    return Estimates(**told)


def _is_small(counts: Iterable[int], least: int) -> bool:
    return any(0 < count < least for count in counts)
