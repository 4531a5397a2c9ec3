"""Data, and the scale of the inputs."""

from collections.abc import Iterator
from pathlib import Path

from consilium.client.data import RawData, SiteData, read_site
from consilium.client.operations.doctor.censoring import censored_label
from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.client.operations.doctor.labels import odd_times
from consilium.common.errors import ConfigError, ConsiliumError, DataError, listed
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig


def check_data(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Read the data as the study will; without a study only check that there is some."""
    if study is None:
        return _look_for_data(config.data.path)
    try:
        unscaled = read_site(config, study)  # class counts are shown here only
        data = unscaled.scaled(study.task.fixed_scale)
    except ConsiliumError as error:
        fix = (
            "correct the data or [data] in site.toml (data.max_skipped allows some unusable files or rows); where the "
            "study's [task] or [split] asks for what this site does not have, ask the coordinator"
        )
        return failed("data", str(error), fix, type(error))
    card = data.card
    counts = ", ".join(f"{name} {count}" for name, count in (card.class_counts or {}).items())
    patients = "" if card.num_groups is None else f" of {card.num_groups} patients"
    common = f", {card.num_test} of them the common test set" if card.test_digest else ""
    text = (
        f"{card.num_examples} examples{patients}{f' ({counts})' if counts else ''}{common}, {card.num_skipped} "
        f"skipped; shown here only{''.join(f'; {sentence}' for sentence in data.reading)}"
    )
    if not (odd := list(_odd(config, study, data, unscaled.raw))):
        return passed("data", text)
    said, fixes = zip(*odd, strict=True)
    return warned("data", "; ".join([text, *said]), "; ".join(dict.fromkeys(fixes)))


def _odd(config: SiteConfig, study: StudyConfig, data: SiteData, raw: RawData) -> Iterator[tuple[str, str]]:
    """Yield each thing that looks wrong about the data, and what a person can do about it."""
    card = data.card
    if missing := sorted(set(study.task.classes) - set(card.classes)):
        yield f"no example of {', '.join(missing)}", "see whether this is so at this hospital"
    if unknown := [name for name, counts in (card.label_counts or {}).items() if not sum(counts)]:
        fix = "no harm where this hospital does not label that: others do, and it gets their part of the model"
        yield f"no example knows the label {listed(unknown, 5, 'labels')}", fix
    if odd := odd_times(raw, study.task):
        yield odd, "see whether this is so at this hospital, and whether the column has 1 where it was seen"
    if censored := censored_label(config, raw, study.task):
        fix = "if so, ask the coordinator for task.survival, which learns from both (docs/coordinator/survival.md)"
        yield censored, fix
    if (few := card.num_test) < LEAST_PATIENTS:
        fix = f"{LEAST_PATIENTS} and more are needed: give more data, or ask the coordinator for a larger split.test"
        yield f"only {few} for the test, so no report will say whether joining helps", fix
    if data.notes:
        fix = "see why rows or files are there more than once; if something names their patient, set split.group"
        yield "; ".join(data.notes), fix


def check_scale(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Say how the inputs will be scaled, and which numbers leave this site for that."""
    if study is None:
        return skipped("scale", "no study known yet")
    task, needed = study.task, study.task.scale == "federation"
    if not task.agrees_on_scale:
        if task.scale == "site":
            fix = (
                "every site's inputs are centred on its own patients, which takes out what tells sick from healthy "
                "where one is more frequent than elsewhere: ask the coordinator for task.scale = 'federation'"
            )
            return warned("scale", "by this site's own training rows (task.scale = 'site'); nothing leaves for it", fix)
        return passed("scale", "by fixed numbers of the study; nothing leaves for it")
    sums = (
        f"count, sum and sum of squares of {task.scaled_values}, over the training examples (share_scale in site.toml)"
    )
    if config.share_scale:
        return passed("scale", f"by that of all sites; leaves this site, once a run: {sums}")
    if needed:
        fix = "set share_scale = true in site.toml, or ask the coordinator for another task.scale"
        return failed("scale", f"task.scale = 'federation' needs the {sums}, which is false", fix, ConfigError)
    fix = "set share_scale = true, or every site of the study is scaled by its own training rows"
    return warned("scale", f"this site keeps to itself the {sums}, which is false", fix)


def _look_for_data(path: Path) -> Finding:
    try:
        present = path.is_file() or any(path.iterdir())
    except OSError as error:
        fix = "set data.path in site.toml to where the data lies, readable for this user"
        return failed("data", f"data path '{path}': {error.strerror or error}", fix, DataError)
    if not present:
        return failed("data", f"data folder '{path}' is empty", "put the data there, or correct data.path", DataError)
    return passed("data", f"'{path}' is there; it is read once a study is known")
