"""What a site's policy takes out of an answer before it leaves: small counts, their complements, digits."""

from typing import Any

import pytest

from consilium.client.privacy.policy.leaving import as_it_leaves
from consilium.common.protocol import counts
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.counts import Estimate, Estimates
from consilium.common.protocol.replies import FinishReply, HandshakeReply
from consilium.common.study.policy import PolicyConfig

SIZES: dict[str, Any] = {"num_examples": 50, "num_train": 30, "num_validation": 10, "num_test": 10, "num_skipped": 0}
MASKS = ("background", "tumour")


def estimates_left(of: Estimates, **policy: Any) -> Estimates | None:
    """Return what leaves of a test split's estimates."""
    reply = FinishReply.model_construct(round=1, test=counts.TestCounts(num_test=50, personal=None, estimates=of))
    left = as_it_leaves(reply, PolicyConfig(**policy), noised=False)
    assert isinstance(left, FinishReply)
    return left.test.estimates


def card_left(**told: Any) -> DataCard:
    """Return what leaves of a card of 50 examples."""
    card = DataCard(**SIZES, schema_digest="", **told)
    left = as_it_leaves(HandshakeReply.model_construct(card=card), PolicyConfig(least_count=5), noised=False)
    assert isinstance(left, HandshakeReply)
    return left.card


@pytest.mark.parametrize(("digits", "difference"), [(1, None), (2, 0.088), (3, 0.088)])
def test_scores_of_few_digits_do_not_contradict_their_difference(digits: int, difference: float | None) -> None:
    """With one digit 0.944 and 0.856 are equal, so that their difference of 0.088 would be refused: it stays."""
    scores = Estimates(
        personal=Estimate(value=0.944, error=0.02),
        local=Estimate(value=0.856, error=0.02),
        difference=Estimate(value=0.088, error=0.01),
    )
    left = estimates_left(scores, metric_digits=digits)
    assert left is not None and left.personal is not None
    assert float(f"{0.944:.{digits}g}") == left.personal.value
    assert difference == (left.difference and left.difference.value)


def test_the_constant_answers_score_leaves_only_where_it_may() -> None:
    """As its counts do."""
    scores = Estimates(majority=Estimate(value=0.3, error=0.1), personal=Estimate(value=0.9, error=0.1))
    shared, kept = (estimates_left(scores, share_majority=share) for share in (True, False))
    assert shared is not None and shared.majority is not None
    assert kept is not None and kept.majority is None and kept.personal == shared.personal


@pytest.mark.parametrize(
    ("told", "leaves"),
    [
        ({"classes": MASKS, "class_counts": {"background": 50, "tumour": 40}}, True),
        ({"classes": MASKS, "class_counts": {"background": 50, "tumour": 49}}, False),  # one picture is without
        ({"classes": (), "label_counts": {"hiv": (20, 20)}}, True),
        ({"classes": (), "label_counts": {"hiv": (20, 29)}}, False),  # one is not known
        ({"classes": (), "label_counts": {"hiv": (3, 40)}}, False),
    ],
)
def test_counts_leave_only_if_those_that_are_left_out_are_not_few_either(told: dict[str, Any], leaves: bool) -> None:
    """One of 50 is as much one person if he is the one who is not counted."""
    left = card_left(**told)
    assert leaves == (left.class_counts is not None or left.label_counts is not None)
