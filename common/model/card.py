"""`MODEL_CARD.md`: what a model is, for whoever finds its folder later."""

from collections.abc import Iterator

from consilium.common.model.record import LabelTemperatures, ModelRecord, Residuals, Score, Temperature
from consilium.common.study.task import PictureTask, SeriesTask, TableTask, TextTask

_SERVED = {
    "personal": "the model of one site, personalised in a federation",
    "global": "the model of a federation, the same for all sites",
    "adapted": "the model of a federation, adapted at a site that never took part",
    "local": "the model that one site trained alone, with the federation's budget",
}


def card_of(record: ModelRecord) -> str:
    """Return the text of a model's card."""
    return "\n".join(
        [
            f"# {record.provenance.study}: {_SERVED[record.provenance.served]}",
            "",
            *_what_it_does(record),
            "",
            "## How good it was",
            "",
            *_scores(record),
            "",
            "## Where it comes from",
            "",
            *_origin(record),
            "",
            "## How to use it",
            "",
            *_usage(record),
            "",
            "## What to know before",
            "",
            *_limits(record),
            "",
        ]
    )


def _what_it_does(record: ModelRecord) -> Iterator[str]:
    task = record.task
    if task.label_kind == "masks":
        yield f"It says of every pixel which of these it is of: {_listed(task.classes)}."
    elif task.label_names:
        yield (
            "It says with a probability for each whether an example has these labels, of which it may have several or "
            f"none: {_listed(task.label_names)}."
        )
    elif task.number is None:
        yield f"It says which of these classes an example is of, with a probability for each: {_listed(task.classes)}."
    elif task.survival_times is not None:
        yield (
            "It answers the log of a patient's risk, relative to other patients: of two, the one with the larger "
            "answer is expected to have the event first. It says nothing of when."
        )
    else:
        yield (
            f"It answers a number; within {task.number.tolerance:g} of the true one an answer counts as right in the "
            "study."
        )
    if isinstance(task, TableTask):
        yield f"It reads the columns {_listed(tuple(task.columns))}; their order in a file does not matter."
    elif isinstance(task, PictureTask):
        colours = "grey" if task.channels == 1 else "colour"
        yield f"It reads {colours} pictures, which are resized to {task.size} x {task.size} pixels."
    elif isinstance(task, SeriesTask):
        yield f"It reads series of {task.length} steps of the channels {_listed(task.channels)}."
    elif isinstance(task, TextTask):
        yield f"It reads texts, of each {'the last' if task.next else 'the first'} {task.length} tokens."
    else:
        yield f"It reads arrays of shape {list(task.input_shape)}."
    yield f"Network: `{record.model.name}`; method of the study: `{record.method.kind}`."


def _scores(record: ModelRecord) -> Iterator[str]:
    if not record.scores:
        yield "Nothing was measured where this folder was written: sites measure, with their own patients."
        return
    yield "| measurement | value | 95 % interval | rows | patients |"
    yield "|---|---|---|---|---|"
    for score in record.scores:
        value, rows = f"{score.value:.3f} | {interval_text(score)}", f"{score.num} {score.rows} | {score.patients}"
        yield f"| {_listed((score.name,))} | {value} | {rows} |"
    yield from _calibration(record)
    yield ""
    yield "These rows are of the site that wrote this folder. At another place, measure again before you rely on it."


def _calibration(record: ModelRecord) -> Iterator[str]:
    found = record.calibration
    if isinstance(found, Temperature):
        (loss, then), (error, after) = found.log_loss, found.calibration_error
        yield ""
        yield (
            f"Its probabilities are calibrated on {found.num} validation rows (temperature {found.temperature:.3g}): "
            f"of rows that were not fitted on, the log loss went from {loss:.3f} to {then:.3f}, the expected "
            f"calibration error from {error:.3f} to {after:.3f}."
        )
    elif isinstance(found, LabelTemperatures):
        yield ""
        yield "The probabilities of some labels are calibrated on the validation rows that know them:"
        for label, one in found.labels.items():
            (loss, then), (error, after) = one.log_loss, one.calibration_error
            yield (
                f"- {_listed((label,))}: temperature {one.temperature:.3g}, fitted on {one.num} rows; of rows that "
                f"were not fitted on, the log loss went from {loss:.3f} to {then:.3f}, the expected calibration error "
                f"from {error:.3f} to {after:.3f}."
            )
    elif isinstance(found, Residuals):
        yield ""
        yield (
            f"Of new patients like the {found.num} of the validation rows, {found.level:.0%} have their true value "
            f"within {found.width:.4g} of the answer."
        )


def interval_text(score: Score) -> str:
    """Return the interval of a score in words."""
    if score.low is None or score.high is None:
        return "too few patients for one"
    return f"{score.low:.3f} to {score.high:.3f}"


def _origin(record: ModelRecord) -> Iterator[str]:
    come = record.provenance
    rows = {
        "study": f"{come.study} (sha256 {come.study_digest[:12]}), {come.num_sites} sites",
        "run": f"{come.run}, weights of round {come.round}",
        "written by": f"site {come.site}" if come.site else "the coordinator",
        "training rows of the site": "unknown" if come.num_train is None else str(come.num_train),
        "digest of the site's data": (come.data_digest or "none")[:12],
        "written at": come.created,
        "consilium": come.consilium,
    }
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows.items())


def _usage(record: ModelRecord) -> Iterator[str]:
    if not record.preprocessing.known:
        yield "Every site scaled its inputs by its own rows: this folder alone cannot answer. A site adapts it:"
        yield "`consilium adapt`."
        return
    yield "```"
    yield "consilium predict THIS-FOLDER DATA --out predictions.csv"
    yield "consilium evaluate THIS-FOLDER DATA-WITH-LABELS"
    yield "```"


def _limits(record: ModelRecord) -> Iterator[str]:
    yield "- It is the result of a study, not a medical device: nobody has approved it for decisions about patients."
    yield "- Its answers hold for patients like those it was trained on; `consilium predict` warns where inputs differ."
    if record.provenance.site is not None:
        yield (
            "- `training-summary.json` sums up the site's training rows, for that warning. It stays at the site: take "
            "the file out before you hand this folder on."
        )
    if record.method.kind == "knn_per" and record.provenance.served == "personal":
        yield (
            "- The weights hold features of the training examples and their classes: the folder is as sensitive as the "
            "examples, and stays at the site."
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("|", "\\|").replace("`", "'") for name in names)
