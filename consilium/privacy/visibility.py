"""What the coordinator can see of each site in a study, from its settings: one row for everything that leaves a site.

A test holds that every field of every reply, and every measurement, is in a row (`tests/contracts/test_visibility.py`):
what is new does not leave before somebody has said who can see it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from consilium.common.codecs import build_chain
from consilium.common.errors import listed
from consilium.common.study.signals import CLASS_COUNTS, EFFECTIVE_STEPS
from consilium.common.study.study import StudyConfig

Group = Literal["weights", "measurements", "counts", "facts", "connection"]
ALONE, SUMS, NOTHING = "each site's", "sums over sites only", "nothing"
"""How a row is seen."""
COORDINATOR = "the coordinator"
RELAY = "the relay that the site is connected to"
EXACT = "exact"
ONCE, EACH_ROUND, AT_THE_END = "once, before round 1", "every round", "once, at the end"
SIDES = ("global", "personal", "local")
"""The models that a site measures."""
REPLY = ("protocol", "codecs", "run", "site", "kind", "round", "attempt")
"""Fields of replies that say what is answered, and hold nothing of the site."""


@dataclass(frozen=True)
class Row:
    """One kind of thing that leaves a site, or that this study keeps there.

    Args:
        seen: whether each site's own is seen, sums over sites only, or nothing.
        exact: how exact it is, in words.
        when: how often it leaves.
        to: who sees it.
        covers: names of fields that it stands for, `Record.field` or `metric:name`, with `*` for any characters.
    """

    group: Group
    what: str
    seen: str
    exact: str
    when: str
    covers: tuple[str, ...]
    to: str = COORDINATOR


Shapes = Mapping[str, tuple[int, ...]]
"""Shared arrays by name, where the model can be built."""


def visibility(study: StudyConfig, *, shapes: Shapes | None = None) -> list[Row]:
    """Return what the coordinator can see in a study, whatever a hospital's own settings and policy keep in addition.

    Args:
        shapes: of the shared arrays; None where the model cannot be built here, as without torch.
    """
    return [
        *_weights(study, shapes),
        *_sums(study),
        *_measurements(study),
        *_counts(study),
        *_test_counts(study),
        *_facts(study),
        *_connection(study),
    ]


def _weights(study: StudyConfig, shapes: Shapes | None) -> Iterator[Row]:
    rounds = f"every round that a site is asked in ({study.rounds} at most)"
    everybody = f"{COORDINATOR}; every site gets the weights that are made of it"
    leaves = {leaf for each in study.relays.values() for leaf in each}
    secure = study.privacy.secure_aggregation or bool(leaves and leaves >= set(study.sites))
    if study.method.shares_nothing:
        yield Row("weights", "no array is shared", NOTHING, "kept at the site", "never", ("RoundReply.payload",))
    else:
        what = f"the change of the shared arrays: {_arrays(shapes)}"
        seen = SUMS if secure else ALONE
        yield Row("weights", what, seen, _exactness(study), rounds, ("RoundReply.payload",), everybody)
        if study.relays:
            what = "the same change, before the relay adds it up"
            yield Row("weights", what, ALONE, _exactness(study), rounds, (), RELAY)
    if study.strategy.travels:
        what = "the change of the control variates, arrays like the shared ones"
        yield Row(
            "weights", what, SUMS if secure else ALONE, _exactness(study), rounds, ("payload:control/*",), everybody
        )
    if study.method.kind == "feddbe":
        what = "the mean of its features over a batch of patients, in the first round"
        yield Row("weights", what, ALONE, EXACT, ONCE, ("payload:features",), everybody)
    yield Row(
        "weights",
        "the shared initial weights, of one site: they follow from the study's seed or a public file, not from data",
        ALONE,
        EXACT,
        ONCE,
        ("InitialWeightsReply.payload", "HandshakeReply.initial_digest", "HandshakeReply.shared_*"),
    )
    if study.keep_updates:
        what = "every accepted update stays on the coordinator's disk (keep_updates), for an auditor"
        yield Row("weights", what, ALONE, _exactness(study), rounds, ("kept:update",), f"{COORDINATOR}; auditors")


def _arrays(shapes: Shapes | None) -> str:
    if shapes is None:
        return "as the study's model and method have them"
    numbers = sum(_size(shape) for shape in shapes.values())
    named = [f"{name} {'x'.join(map(str, shape)) or '1'}" for name, shape in sorted(shapes.items())]
    return f"{len(shapes)} arrays of {numbers:,} numbers in all ({listed(named, 6)})"


def _size(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _exactness(study: StudyConfig) -> str:
    """Return how exact an update is when the server, or the sum, has it."""
    words = []
    if (private := study.privacy.examples) is not None:
        whom = "each patient's" if private.unit == "patient" else "each row's"
        how = f"epsilon {private.epsilon:g}" if private.epsilon is not None else f"noise multiplier {private.noise:g}"
        words.append(f"with noise: {whom} part is clipped, {how} over the run")
    if study.privacy.secure_aggregation:
        words.append(f"masked, to {study.privacy.longest:g} in length")
    if study.uplink and not build_chain(study.uplink).lossless:
        words.append(f"coded ({study.codec})")
    if study.privacy.hides_sites:
        words.append("each site has added its share of the noise that hides it as a whole")
    elif study.privacy.sites is not None:
        words.append("the coordinator adds noise to the mean, after it has seen each")
    return "; ".join(words) or EXACT


def _sums(study: StudyConfig) -> Iterator[Row]:
    if not study.privacy.secure_aggregation:
        return
    others = f"{COORDINATOR}, who hands them on; the other sites"
    yield Row(
        "weights",
        "keys of the run for the masks, signed by the site, and sealed shares of these",
        ALONE,
        "random numbers; nothing of the data",
        "once, and every round",
        ("SignedKey.*", "payload:sealed"),
        others,
    )
    what = "shares that take the masks off the sum of a round, never off one update"
    yield Row("weights", what, ALONE, "random numbers", EACH_ROUND, ("UnmaskReply.payload",))


def _measurements(study: StudyConfig) -> Iterator[Row]:
    private = study.privacy.examples is not None
    kept = private or study.privacy.hides_sites
    scores = ("loss", "accuracy", *study.metrics)
    sides = [side for side in SIDES if side != "local" or study.local_baseline]
    names = tuple(f"metric:{side}.{score}" for side in sides for score in scores)
    often = EACH_ROUND if study.evaluate_every == 1 else f"every {study.evaluate_every} rounds, and in the last one"
    what = f"{', '.join(scores)} of the {', '.join(sides)} model on the validation rows, and the loss in training"
    covers = (*names, "metric:train.loss", "metric:apfl.alpha")
    yield Row("measurements", what, NOTHING if kept else ALONE, "kept at the site" if kept else EXACT, often, covers)
    of_data = sorted(study.needs - {EFFECTIVE_STEPS, CLASS_COUNTS})
    if of_data:
        what = f"what the strategy and the weighting ask for: {', '.join(of_data)}"
        covers = tuple(f"metric:{name}" for name in of_data)
        seen, exact = (NOTHING, "kept at the site") if private else (ALONE, EXACT)
        yield Row("measurements", what, seen, exact, EACH_ROUND, covers)
    if EFFECTIVE_STEPS in study.needs:
        what = "the number of training steps, which the study's settings give"
        yield Row("measurements", what, ALONE, EXACT, EACH_ROUND, (f"metric:{EFFECTIVE_STEPS}",))
    if study.uplink:
        what = "how much the codec left out of the update"
        yield Row("measurements", what, ALONE, EXACT, EACH_ROUND, ("metric:uplink.nmse",))
    if private:
        what = "what the study has spent of the site's privacy budget"
        covers = ("PrivacySpent.*",)
        yield Row("measurements", what, ALONE, "exact; it follows from the settings", EACH_ROUND, covers)


def _counts(study: StudyConfig) -> Iterator[Row]:
    private = study.privacy.examples is not None
    exact = "with noise, or a number that the hospital publishes anyway" if private else EXACT
    sizes = ("num_examples", "num_train", "num_validation", "num_test")
    covers = (*(f"DataCard.{name}" for name in sizes), "RoundReply.num_examples")
    yield Row(
        "counts", "how many examples it has, in each split", ALONE, exact, "once; for training, every round", covers
    )
    details = ("num_skipped", "num_groups", "num_copies", "num_alike")
    what = "how many of them are unusable, of one patient, exact copies, or equal to another one"
    seen, how = (NOTHING, "kept at the site") if private else (ALONE, EXACT)
    yield Row("counts", what, seen, how, ONCE, tuple(f"DataCard.{name}" for name in details))
    what = "which of the study's classes it has"
    yield Row("counts", what, *_classes(private=private), ONCE, ("DataCard.classes",))
    what = "how many examples of each class, if the hospital's share_class_counts allows it"
    how = "with noise (class_counts_epsilon)" if private else "exact, or with the hospital's class_counts_epsilon"
    yield Row("counts", what, ALONE, how, ONCE, ("DataCard.class_counts",))
    if study.task.label_names:
        what = "how many examples have each label, and how many have it not, if its share_class_counts allows it"
        yield Row("counts", what, ALONE, how, ONCE, ("DataCard.label_counts", "DataCard.label_noise"))
    if study.task.agrees_on_scale:
        columns = len(study.task.scaled_columns)
        what = f"count, sum and sum of squares of each of {columns} columns, if its share_scale allows it"
        yield Row("counts", what, ALONE, EXACT, ONCE, ("Moments.*",))


def _classes(*, private: bool) -> tuple[str, str]:
    return (ALONE, "all of the study's classes, whichever it has") if private else (ALONE, EXACT)


def _test_counts(study: StudyConfig) -> Iterator[Row]:
    private = study.privacy.examples
    if not study.task.counted:
        yield Row("counts", "how many test rows it has", ALONE, EXACT, AT_THE_END, ("TestCounts.num_test",))
        what = "the score of each model and of the constant answer on its test rows, with standard errors"
        survival = study.task.survival_times
        if survival is not None and survival.horizon is not None:
            what = f"{what}; Brier scores at {survival.horizon:g} too"
        yield Row("measurements", what, ALONE, EXACT, AT_THE_END, ("Estimate.*",))
        if study.task.label_kind == "masks":
            what = "up to six test pictures with outlines, of a site whose share_overlays is true"
            yield Row("measurements", what, ALONE, "256 x 256 pixels", AT_THE_END, ("FinishReply.payload",))
        return
    if private is None:
        what = "how many test rows each model and the constant answer got right, and which of two models did better"
        counts = ("majority", "local", "global_", "personal", "pairs")
        covers = ("TestCounts.num_test", *(f"TestCounts.{name}" for name in counts), "Patients.*")
        yield Row(
            "counts", f"{what}; with patients of several rows, sums over patients", ALONE, EXACT, AT_THE_END, covers
        )
        return
    models = "the global model" if study.method.tunes_served else "the global and the served model"
    what = f"how many test patients {models} got right"
    covers = ("TestCounts.num_test", "TestCounts.global_", "TestCounts.personal", "TestCounts.noise")
    yield Row("counts", what, ALONE, "with noise", AT_THE_END, covers)
    what = "test counts of models that were trained without noise, of the constant answer, and sums over patients"
    covers = ("TestCounts.majority", "TestCounts.local", "TestCounts.pairs", "Patients.*")
    yield Row("counts", what, NOTHING, "kept at the site", "never", covers)


def _facts(study: StudyConfig) -> Iterator[Row]:
    what = "versions of the software, and packages of others that the study uses with their digests"
    yield Row("facts", what, ALONE, EXACT, ONCE, ("Versions.*", "OwnPackage.*"))
    what = "digest of the names and kinds of its columns"
    yield Row("facts", what, ALONE, "a digest", ONCE, ("DataCard.schema_digest",))
    what = "a commitment to its data, which only the hospital can open, for an auditor"
    yield Row(
        "facts", what, ALONE, "random numbers to whoever lacks the site's key", ONCE, ("DataCard.data_commitment",)
    )
    if study.task.test is not None:
        yield Row("facts", "digest of the common test set", ALONE, "a digest", ONCE, ("DataCard.test_digest",))
    what = "how often its test split was read for this study"
    yield Row("facts", what, ALONE, EXACT, ONCE, ("DataCard.test_readings*",))
    what = "seconds that an answer took, and the number of its process"
    yield Row("facts", what, ALONE, EXACT, "every answer", ("*Reply.seconds", "*Reply.pid"))
    what = "after which round it kept the state that it went on from, where the one it should have was damaged or lost"
    yield Row("facts", what, ALONE, EXACT, "when it happens", ("RoundReply.state_of", "FinishReply.state_of"))
    what = "how long its audit log is, and the SHA-256 of the last line, signed"
    yield Row("facts", what, ALONE, "a digest", "every answer", ("AuditHead.*",))
    what = "what could not be done: settings and model errors; of data and disk errors only the kind, unless its "
    what += "share_error_details says more"
    yield Row("facts", what, ALONE, "a sentence, never a value", "when it happens", ("FailureReply.*",))
    yield Row("facts", "which plan is answered", ALONE, EXACT, "every answer", tuple(f"*Reply.{one}" for one in REPLY))


def _connection(study: StudyConfig) -> Iterator[Row]:
    what = "its name and certificate, its network address, when it is connected, and how long its messages are"
    covers = ("connection:*", "RelayReply.online", "RelayReply.update_bytes")
    yield Row("connection", what, ALONE, EXACT, "always", covers)
    if study.relays:
        what = "all that this page lists, on its way to the coordinator; of the updates, their mean goes on"
        yield Row("connection", what, ALONE, EXACT, "always", (), RELAY)
