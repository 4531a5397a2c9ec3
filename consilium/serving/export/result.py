"""What is known of an export when it is done: `export.json`, and what the terminal says."""

from typing import Literal

from pydantic import Field

from consilium.common.study.names import Sha256
from consilium.common.study.record import Record

Form = Literal["onnx", "torch-export"]


class FileFacts(Record):
    """A file of an export."""

    bytes: int
    """Its size."""
    compressed: int
    """Its size in a zip file."""
    sha256: Sha256
    """Its digest."""


class Check(Record):
    """The comparison of a file with the model that it was made of."""

    rows: int
    """How many rows both answered."""
    what: str
    """Which rows."""
    batches: tuple[int, ...]
    """Sizes of the batches."""
    difference: float
    """Largest difference of a probability, or of a number in units of the label's scale."""
    tolerance: float
    """What was allowed; a larger one is an error."""


class Measurement(Record):
    """A score, such as the share of correct answers, with its 95 % interval."""

    name: str
    """`accuracy`, or what else the task's score is."""
    what: str
    """Of which rows."""
    num: int
    """How many rows."""
    value: float
    """The share."""
    low: float | None = None
    """Lower bound; None where there are too few patients for one."""
    high: float | None = None
    """Upper bound."""


class Difference(Record):
    """A share of correct answers less another one of the same rows."""

    value: float
    """The difference."""
    low: float | None = None
    """Lower bound of its 95 % interval; None where there are too few patients for one."""
    high: float | None = None
    """Upper bound."""


class Int8(Record):
    """What int8 saves and costs."""

    share_of_size: float
    """Size of the file in int8, as a share of that in float32."""
    calibration: str
    """The rows from which the range of numbers was taken."""
    before: Measurement | None = None
    """In float32; None without labelled rows."""
    after: Measurement | None = None
    """In int8."""
    difference: Difference | None = None
    """After less before, on the same rows."""
    changed: dict[str, float] = Field(default={}, exclude_if=lambda changed: not changed)
    """Of each of several labels, the share of these rows whose decision, a probability above 1/2, is another one."""


class Pruned(Record):
    """A model of which a share of the weights is 0."""

    share: float
    """Share of the weights that is struck out, the smallest of all layers together; biases and norms stay."""
    zeros: int
    """How many weights are 0."""
    weights: int
    """Of how many."""
    compressed: int
    """Size of all arrays in a zip file."""
    score: Measurement | None = None
    """Without labelled rows None."""
    changed: dict[str, float] = Field(default={}, exclude_if=lambda changed: not changed)
    """Of each of several labels, the share of rows whose decision is not that of the whole model."""


class Export(Record):
    """What was exported, how it was checked, and what it costs."""

    format: Literal[1] = 1
    form: Form
    """In which form."""
    model: str
    """Which model it is, in words."""
    study: str
    """The study's name."""
    weights_sha256: Sha256 | None = None
    """Digest of the weights that it was made of."""
    consilium: str
    """The version that exported it."""
    files: dict[str, FileFacts]
    """The files, by name."""
    inputs: dict[str, str]
    """What is to be given, by name."""
    outputs: dict[str, str]
    """What is answered, by name."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the probabilities."""
    labels: tuple[str, ...] = Field(default=(), exclude_if=lambda labels: not labels)
    """Names of several labels in the order of their probabilities, which do not add up to 1."""
    check: Check
    """The comparison with the model."""
    int8: Int8 | None = None
    """What int8 saves and costs."""
    pruned: Pruned | None = None
    """What was struck out of the exported model."""
    pruning: tuple[Pruned, ...] = ()
    """The curve: the same model with more and more of its weights struck out."""
    notes: tuple[str, ...] = ()
    """What to know of all this."""
