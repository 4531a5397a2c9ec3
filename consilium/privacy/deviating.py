"""What a server that does not keep to a study could learn in it, in sentences; measured by `benchmarks/attacks.py`."""

from collections.abc import Iterator

from consilium.common.privacy.secure.noise import colluding_sites, fewest_answers
from consilium.common.study.study import StudyConfig

ATTACKS = "benchmarks/attacks.py"
"""Rebuilds patients from updates, with and without what protects them; its table is committed beside it."""


def what_deviating_servers_learn(study: StudyConfig) -> list[str]:
    """Return sentences on what a coordinator could learn who sends other weights than those of the study."""
    return [*_from_updates(study), *_from_sums(study), *_from_numbers(study)]


def _from_updates(study: StudyConfig) -> Iterator[str]:
    privacy = study.privacy
    if study.method.shares_nothing:
        yield "No weights leave a site in this study, so none can be turned against a patient."
        return
    if privacy.examples is not None:
        limit = (
            f"the whole run changes what anybody can conclude of one patient by at most a factor of "
            f"e^{privacy.examples.epsilon:g}"
            if privacy.examples.epsilon is not None
            else "the site's ledger says by how much the whole run can change what anybody concludes of one patient"
        )
        yield f"Whatever weights the server sends, each site's noise holds: {limit}, but for a probability of delta."
    elif privacy.secure_aggregation:
        yield (
            "The server gets sums over sites. Weights made for it still turn a sum into exact copies of single rows, "
            "without the name of the site that they are from: how many is measured, not bounded. Only "
            f"privacy.examples bounds it ({ATTACKS})."
        )
    elif study.relays:
        yield (
            "The server gets means over a relay's sites, the relay each update by itself: a relay that deviates can "
            "rebuild patients from it. Weights made for it by either turn a mean, too, into copies of single rows, "
            f"without the name of the site. Only privacy.examples bounds it ({ATTACKS})."
        )
    else:
        yield (
            "Nothing in this study keeps a server that deviates from rebuilding patients: weights made for it turn a "
            f"site's update into exact copies of single rows ({ATTACKS} does it), and an update of one row per batch "
            "and one step gives that row away even with honest weights. Clipping alone does not help. Noise "
            "(privacy.examples) does; sums over sites (privacy.secure_aggregation) help against honest weights alone."
        )
    if study.keep_updates:
        yield "Kept updates can be attacked for as long as they lie there, by whoever has the coordinator's disk."


def _from_sums(study: StudyConfig) -> Iterator[str]:
    if study.privacy.secure_aggregation:
        yield (
            "Sums of two rounds whose sites differ by one tell about that one; a coordinator who runs all other sites "
            "of a sum knows the last one's update. Sites refuse sums of fewer than three sites, and of fewer than "
            "their policy says."
        )
    if study.relays:
        yield (
            "Means of two rounds whose sites differ by one tell about that one. A relay sends none of fewer than two "
            "sites, and its people and the coordinator together see what each of them sees."
        )
    if study.privacy.hides_sites:
        yield (
            "Noise for whole sites is added by the sites, who refuse sums with less of it and sums of fewer than "
            f"{fewest_answers(study)} sites: with {colluding_sites(study)} of these a server can take off their share, "
            "and the promise to the others holds; with more it does not."
        )
    elif study.privacy.sites is not None:
        yield "Noise for whole sites is added by the server: it protects sites from others, not from the server."


def _from_numbers(study: StudyConfig) -> Iterator[str]:
    if study.privacy.examples is not None:
        return
    if study.privacy.hides_sites:
        yield (
            "Noise for whole sites is on their updates alone. No measurement of a round leaves; numbers of examples, "
            "classes and the test counts at the end do, exact, unless a hospital's policy.toml keeps them."
        )
        return
    yield (
        "Exact numbers tell of the data, too: the test counts of the constant answer give the balance of the classes, "
        "and measurements on weights of the server's choice answer a question about the validation rows in every "
        "round. A hospital's policy.toml says which may leave."
    )
