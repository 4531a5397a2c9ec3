"""Options of `consilium data split`, and which of them go together."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import typer

from consilium.common.data.tables import Form
from consilium.common.data.text_files import DELIMITERS
from consilium.common.errors import ConfigError

PoolKind = Literal["images", "pictures", "features", "series", "table"]
"""What a pool is of: `images` are arrays, `pictures` files."""
By = Literal["dirichlet", "classes", "quantity", "feature", "iid", "interleaved", "column"]

ALPHA, LABELS_PER_SITE, MIN_EXAMPLES = 0.5, 2, 20
"""Defaults of options that only some rules use."""


@dataclass(frozen=True)
class SplitOptions:
    """Options of `consilium data split`; None: the default."""

    by: Annotated[
        By,
        typer.Option(
            help="What differs between sites: labels (dirichlet, classes), sizes (quantity), devices (feature), the "
            "values of a table's column (column), or nothing (iid: divided at random; interleaved: in turn).",
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
            help="What names the patient: a column or an array; of picture files 'folder', a pattern of names "
            "or 'dicom:PatientID'. A patient's rows stay at one site."
        ),
    ] = None
    official_test: Annotated[
        bool, typer.Option("--official-test", help="The pool's own test images are every site's test set.")
    ] = False
    series: Annotated[
        bool, typer.Option("--series", help="x of an .npz file is series over time, (N, T, C) or (N, T), no pictures.")
    ] = False
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
    "column": ("column",),
}
"""The options that each rule uses, of those that not all rules use."""
_OF_TABLES = ("delimiter", "decimal", "encoding", "sheet", "no_header")


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


def check_fit(options: SplitOptions, kind: PoolKind) -> None:
    """Check that options fit a pool of images, of other arrays of numbers, of series, of rows of a table, or of files.

    Raises:
        ConfigError: they do not.
    """
    images = kind in ("images", "pictures")
    if kind != "table" and options.by == "column":
        whose = "picture files" if kind == "pictures" else f"{kind} of an .npz file"
        raise ConfigError(f"--by column is for tables; {whose} have no such columns")
    if kind != "table" and (given := [name for name in _OF_TABLES if getattr(options, name)]):
        has = "picture files have" if kind == "pictures" else "an .npz file has"
        raise ConfigError(f"--{given[0].replace('_', '-')} is for tables; {has} no rows of text")
    if kind == "pictures" and options.series:
        raise ConfigError("--series is for an .npz file; a folder holds picture files")
    if kind == "pictures" and options.by == "feature":
        raise ConfigError(
            "--by feature changes pixels, and picture files are copied as they are: put the pictures into an .npz file"
        )
    if kind == "table" and options.series:
        raise ConfigError("--series is for an .npz file; give each site its part of a table of series as it is")
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


def with_defaults(options: SplitOptions) -> SplitOptions:
    """Return options in which each default that is used is filled in."""
    defaults = {"alpha": ALPHA, "labels_per_site": LABELS_PER_SITE, "min_examples": MIN_EXAMPLES}
    unset = {name: default for name, default in defaults.items() if getattr(options, name) is None}
    filled: dict[str, Any] = {name: default for name, default in unset.items() if name in _USED[options.by]}
    return replace(options, **filled)


def settings_of(options: SplitOptions) -> dict[str, Any]:
    """Return options as the record of a federation has them: those that are set, and defaults that are used."""
    return {name: value for name, value in asdict(with_defaults(options)).items() if value not in (None, False)}
