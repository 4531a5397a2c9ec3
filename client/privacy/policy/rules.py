"""All rules of a policy, in the order in which they are applied; a plan that breaks one is refused with a sentence."""

from collections.abc import Iterable, Mapping

from consilium.client.privacy.policy import order_rules, study_rules
from consilium.client.privacy.policy.case import Case, Refuses, Stage
from consilium.common.errors import PolicyRefused

RULES: Mapping[Stage, tuple[Refuses, ...]] = {
    "order": (*(order_rules.expires, order_rules.requests_per_hour, order_rules.max_state_mb),),
    "app": (order_rules.approve_runs,),
    "study": (order_rules.accepted_study, order_rules.approve_runs, *study_rules.OF_THE_STUDY),
    "data": study_rules.OF_THE_DATA,
    "again": (order_rules.accepted_study, order_rules.approve_runs),
}
"""The rules that refuse, each a function with the name of its field of the policy."""
LEFT_OUT = ("metrics", "metric_digits", "least_count", "share_majority")
"""Fields that decide what is left out of a reply (`leaving.py`)."""


def check(stage: Stage, case: Case) -> None:
    """Apply the rules of a stage.

    Raises:
        PolicyRefused: a rule refuses the plan; names the rule.
    """
    for rule in RULES[stage]:
        if (sentence := rule(case)) is not None:
            raise PolicyRefused(f"site '{case.site}' {sentence} ({rule.__name__} in its policy)")


def rules_named() -> Iterable[str]:
    """Yield the field of every rule."""
    yield from {rule.__name__: None for rules in RULES.values() for rule in rules} | dict.fromkeys(LEFT_OUT)
