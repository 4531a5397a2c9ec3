"""Options of `consilium data split`, and which of them go together."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import typer

from consilium.common.data.tables import Form
from consilium.common.data.text_files import DELIMITERS
from consilium.common.errors import ConfigError

PoolKind = Literal["images", "pictures", "features", "series", "table", "long table", "texts", "plain texts"]
"""What a pool is of: `images` and `series` are arrays, `pictures` files, `long table` a table of series."""
By = Literal["dirichlet", "classes", "quantity", "feature", "iid", "interleaved", "contiguous", "column"]
Next = Literal["character", "word"]
SPEAKER = "speaker"
"""As the group of a plain text: whose words follow a line such as `ROMEO:`."""

ALPHA, LABELS_PER_SITE, MIN_EXAMPLES = 0.5, 2, 20
"""Defaults of options that only some rules use."""


@dataclass(frozen=True)
class SplitOptions:
    """Options of `consilium data split`; None: the default."""

    by: Annotated[
        By,
        typer.Option(
            help="What differs between sites: labels (dirichlet, classes), sizes (quantity), devices (feature), the "
            "values of a table's column (column), or nothing (iid: divided at random; interleaved: in turn; "
            "contiguous: one piece after the other).",
        ),
    ]
    sites: Annotated[int | None, typer.Option(max=1000, help="How many sites; not with --by column.")] = None
    alpha: Annotated[
        float | None,
        typer.Option(help=f"dirichlet, quantity: a small alpha makes sites differ much. Default: {ALPHA}."),
    ] = None
    labels_per_site: Annotated[
        int | None, typer.Option(help=f"classes: labels at each site. Default: {LABELS_PER_SITE}.")
    ] = None
    column: Annotated[str | None, typer.Option(help="column: the column of a table that names the site.")] = None
    label: Annotated[str | None, typer.Option(help="Tables: the column with the class or number to learn.")] = None
    tolerance: Annotated[
        float | None, typer.Option(help="The label is a number; a prediction within this distance of it is right.")
    ] = None
    min_examples: Annotated[
        int | None, typer.Option(help=f"Least number of examples of a site. Default: {MIN_EXAMPLES}.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="The seed of everything random.")] = 42
    group: Annotated[
        str | None,
        typer.Option(
            help="What names the patient: a column or an array; of picture files and texts in folders 'folder' or a "
            "pattern of names, or 'dicom:PatientID'; of plays 'speaker'. A patient's rows stay at one site."
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            help="Tables, in place of --label: the columns of several labels with commas between. Each is 1 or 0, and "
            "empty where it is not known."
        ),
    ] = None
    event: Annotated[
        str | None,
        typer.Option(
            help="Tables: --label is the time until an event, and this column says whether it was seen then: 1 or "
            "true, else 0 or false. --by iid gives each site its share of events."
        ),
    ] = None
    text: Annotated[str | None, typer.Option(help="Tables: the column with the text to learn the label of.")] = None
    next: Annotated[
        Next | None, typer.Option(help="A .txt file, or a folder of them: learn the character or word that follows.")
    ] = None
    official_test: Annotated[
        bool, typer.Option("--official-test", help="The pool's own test images are every site's test set.")
    ] = False
    series: Annotated[
        bool,
        typer.Option(
            "--series",
            help="x of an .npz file is series over time, (N, T, C) or (N, T); a table has a row for each series and "
            "time.",
        ),
    ] = False
    series_column: Annotated[
        str | None, typer.Option(help="Tables of series: the column that says which one a row is of. Default: series.")
    ] = None
    time_column: Annotated[
        str | None, typer.Option(help="Tables of series: the column with the time. Default: time.")
    ] = None
    delimiter: Annotated[
        str | None, typer.Option(help="Tables: the sign between fields, ',', ';', '|' or tab. Default: found.")
    ] = None
    decimal: Annotated[
        str | None, typer.Option(help="Tables: the sign before a number's fraction, '.' or ','. Default: found.")
    ] = None
    encoding: Annotated[str | None, typer.Option(help="Tables: the file's encoding, e.g. cp1252. Default: found.")] = (
        None
    )
    sheet: Annotated[str | None, typer.Option(help="Excel: the sheet, where several could be meant.")] = None
    no_header: Annotated[
        bool, typer.Option("--no-header", help="Tables: the first line is a row; columns are column_1, column_2, ...")
    ] = False

    @property
    def label_names(self) -> tuple[str, ...]:
        """The columns of several labels; none where a row has one."""
        return () if self.labels is None else tuple(name.strip() for name in self.labels.split(","))

    @property
    def form(self) -> Form:
        """How a table's file is to be read."""
        sign = "\t" if self.delimiter in ("tab", "\\t") else self.delimiter
        decimal: Any = self.decimal
        return Form(sign, decimal, self.encoding, self.sheet, no_header=self.no_header)


_USED: Mapping[By, tuple[str, ...]] = {
    "dirichlet": ("sites", "alpha", "min_examples"),
    "classes": ("sites", "labels_per_site", "min_examples"),
    "quantity": ("sites", "alpha", "min_examples"),
    "feature": ("sites", "min_examples"),
    "iid": ("sites", "min_examples"),
    "interleaved": ("sites", "min_examples"),
    "contiguous": ("sites", "min_examples"),
    "column": ("column",),
}
"""The options that each rule uses, of those that not all rules use."""
_OF_TABLES = ("labels", "event", "delimiter", "decimal", "encoding", "sheet", "no_header")


def check_options(options: SplitOptions) -> None:
    """Check that options fit each other.

    Raises:
        ConfigError: they do not.
    """
    used = _USED[options.by]
    if options.decimal not in (None, ".", ","):
        raise ConfigError(f"--decimal must be '.' or ',', got '{options.decimal}'")
    if options.delimiter is not None and options.form.delimiter not in DELIMITERS:
        raise ConfigError(f"--delimiter must be ',', ';', '|' or tab, got '{options.delimiter}'")
    others = [name for name in ("text", "next", "labels", "event") if getattr(options, name) is not None]
    if options.series and others:
        raise ConfigError(f"--series does not go with --{others[0]}: the label of a series is a class or a number")
    if options.text is not None and options.next is not None:
        raise ConfigError("--text does not go with --next: texts with a label, or plain texts to learn what follows")
    _check_labels(options)
    _check_event(options)
    for name in ("label", "column"):
        if options.group is not None and options.group == getattr(options, name):
            raise ConfigError(
                f"--group and --{name} are both '{options.group}': --group is for the column that says which patient a "
                "row is of"
            )
    for name in ("sites", "alpha", "labels_per_site", "column", "min_examples"):
        option = "--" + name.replace("_", "-")
        given = getattr(options, name) is not None
        if given and name not in used:
            raise ConfigError(f"{option} means nothing with --by {options.by}")
        if not given and name in used and name in ("sites", "column"):
            raise ConfigError(f"--by {options.by} needs {option}")


def _check_labels(options: SplitOptions) -> None:
    if options.labels is None:
        return
    names = options.label_names
    if given := [name for name in ("label", "tolerance", "text", "next") if getattr(options, name) is not None]:
        raise ConfigError(f"--labels does not go with --{given[0]}: it names all that is learned, from other columns")
    if len(names) < 2 or "" in names or len({*names}) < len(names):
        raise ConfigError(
            f"--labels: expected the names of at least two columns, all different, got '{options.labels}'"
        )
    for name in ("group", "column"):
        if getattr(options, name) in names:
            raise ConfigError(f"--{name} '{getattr(options, name)}' is one of --labels, expected a column of its own")


def _check_event(options: SplitOptions) -> None:
    if options.event is None:
        return
    if given := [name for name in ("labels", "tolerance", "text", "next") if getattr(options, name) is not None]:
        raise ConfigError(f"--event does not go with --{given[0]}: with --event, --label is the time until an event")
    if options.label is None:
        raise ConfigError("--event needs --label, the column with the time until the event, or until the last visit")
    for name in ("label", "group", "column"):
        if getattr(options, name) == options.event:
            raise ConfigError(f"--event and --{name} are both '{options.event}', expected two columns")


def check_fit(options: SplitOptions, kind: PoolKind) -> None:
    """Check that options fit a pool of images, of other arrays of numbers, of series, of rows of a table, or of files.

    Raises:
        ConfigError: they do not.
    """
    images, tables = kind in ("images", "pictures"), kind in ("table", "long table", "texts")
    whose = {"pictures": "picture files", "plain texts": "plain texts"}.get(kind)
    if not tables and options.by == "column":
        raise ConfigError(f"--by column is for tables; {whose or f'{kind} of an .npz file'} have no such columns")
    if not tables and (given := [name for name in _OF_TABLES if getattr(options, name)]):
        has = f"{whose} have" if whose else "an .npz file has"
        raise ConfigError(f"--{given[0].replace('_', '-')} is for tables; {has} no rows of text")
    if options.series and kind not in ("series", "long table"):
        raise ConfigError(f"--series is for an .npz file or a table; the pool holds {whose or kind}")
    _check_texts(options, kind)
    if kind == "pictures" and options.by == "feature":
        raise ConfigError(
            "--by feature changes pixels, and picture files are copied as they are: put the pictures into an .npz file"
        )
    if not images and options.by == "feature":
        raise ConfigError("--by feature is for images: it changes how each site's device shows them")
    if options.tolerance is None:
        return
    if not 0 < options.tolerance < math.inf:
        raise ConfigError(f"--tolerance must be above 0, got {options.tolerance:g}")
    if images:
        raise ConfigError("--tolerance is for labels that are numbers; images have classes")
    if options.by in ("dirichlet", "classes"):
        raise ConfigError(
            f"--by {options.by} spreads classes, but with --tolerance the label is a number: divide --by quantity, "
            "iid, interleaved or column"
        )


def _check_texts(options: SplitOptions, kind: PoolKind) -> None:
    """Check the options of texts and of long tables."""
    if options.text is not None and kind != "texts":
        raise ConfigError("--text is for tables: the column with the text to learn the label of")
    if options.next is not None and kind != "plain texts":
        raise ConfigError("--next is for a .txt file, or a folder of such files")
    for name in ("series_column", "time_column"):
        if getattr(options, name) is not None and kind != "long table":
            raise ConfigError(f"--{name.replace('_', '-')} is for a table of series: add --series")
    if kind != "plain texts":
        return
    if options.by in ("dirichlet", "classes", "feature") or options.tolerance is not None:
        given = "--tolerance" if options.tolerance is not None else f"--by {options.by}"
        raise ConfigError(f"{given} is for examples with a label; of a plain text one learns what follows")
    if options.group is None and options.by != "contiguous":
        raise ConfigError(
            f"--by {options.by} would tear a text to pieces: divide it --by contiguous, or with --group {SPEAKER} "
            "by who says what"
        )
    if options.official_test:
        raise ConfigError("--official-test is for images; name a common test text by task.test in the study")


def with_defaults(options: SplitOptions) -> SplitOptions:
    """Return options in which each default that is used is filled in."""
    defaults = {"alpha": ALPHA, "labels_per_site": LABELS_PER_SITE, "min_examples": MIN_EXAMPLES}
    unset = {name: default for name, default in defaults.items() if getattr(options, name) is None}
    filled: dict[str, Any] = {name: default for name, default in unset.items() if name in _USED[options.by]}
    return replace(options, **filled)


def settings_of(options: SplitOptions) -> dict[str, Any]:
    """Return options as the record of a federation has them: those that are set, and defaults that are used."""
    return {name: value for name, value in asdict(with_defaults(options)).items() if value not in (None, False)}
