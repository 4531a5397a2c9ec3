"""`README.md` of an export: what the files are, for whoever gets them."""

from collections.abc import Iterator

from consilium.common.errors import clean
from consilium.serving.export.result import Export


def readme_of(export: Export) -> str:
    """Return the text."""
    return "\n".join(
        [*_head(export), "", *_columns("given", export.inputs), "", *_columns("answered", export.outputs), ""]
    )


def _head(export: Export) -> Iterator[str]:
    compared = export.check
    yield f"# {export.study}: a model in the form {export.form}"
    yield ""
    yield f"It was made of the {clean(export.model.partition(' (')[0])} by consilium {export.consilium}."
    yield (
        f"The file and the model were given the same {compared.what} ({compared.rows}): the largest difference is "
        f"{compared.difference:.1g}."
    )
    if export.classes:
        yield f"Classes, in the order of the probabilities: {', '.join(map(_plain, export.classes))}."
    if export.labels:
        yield f"Labels, in the order of their probabilities: {', '.join(map(_plain, export.labels))}."
    yield (
        "NaN (and an empty class) is the answer to a row that cannot be answered: a missing value that the model does "
        "not fill, or a category that it does not know."
    )
    yield (
        "It is the result of a study, not a medical device: nobody has approved it for decisions about patients. At "
        "another place, measure it before you rely on it."
    )
    for note in export.notes:
        yield f"{clean(note[0].upper() + note[1:], 2000)}."


def _columns(title: str, texts: dict[str, str]) -> Iterator[str]:
    yield f"| {title} | as |"
    yield "|---|---|"
    yield from (f"| {_plain(name)} | {what} |" for name, what in texts.items())


def _plain(name: str) -> str:
    return clean(name).replace("|", "\\|").replace("`", "'")
