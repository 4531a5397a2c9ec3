"""One page for people: what the model is, a form for one patient or some pictures, and the answer."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from consilium.common.study.task import CategoryColumn, PictureTask, TableTask, TextTask
from consilium.findings.decimals import number
from consilium.serving.serve.answering import Served

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
label { display: block; margin: .4rem 0; }
input, select, button { font: inherit; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #bbb; overflow-wrap: anywhere; }
img { max-width: 16rem; }
small { color: #555; overflow-wrap: anywhere; }
"""
POLICY = (
    "default-src 'none'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'"
)
"""The content security policy: no script, nothing from elsewhere, this one style; masks are pictures in the page."""


def page(served: Served, *, answer: Mapping[str, Any] | None = None, problem: str = "") -> str:
    """Return the page, with an answer, or with what was wrong with the question."""
    come = served.model.record.provenance
    whose = f"site {come.site}" if come.site else "the coordinator"
    results = [f"<p><strong>{escape(problem)}</strong></p>"] if problem else []
    results += [] if answer is None else [_answers(answer["predictions"])]
    lines = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(come.study)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(come.study)}</h1>",
        f"<p>The {escape(come.served)} model of {escape(whose)}, run {escape(come.run)}, round {come.round}.</p>",
        *results,
        _form(served),
        _scores(served),
        "<p>No medical device: nobody has approved it for decisions about patients.</p>",
        f"<p><small>model.json has sha256 {served.digest}</small></p></html>",
    ]
    return "\n".join(lines)


def row_of(fields: Mapping[str, str], task: TableTask | TextTask) -> dict[str, str]:
    """Return the row of a table that the form's fields are; its fields have numbers, as columns may have any name."""
    names = (task.text,) if isinstance(task, TextTask) else tuple(task.columns)
    return {name: fields.get(f"c{place}", "") for place, name in enumerate(names)}


def _form(served: Served) -> str:
    task = served.model.record.task
    if isinstance(task, TableTask):
        rows = [_field(place, name, column) for place, (name, column) in enumerate(task.columns.items())]
        return "\n".join(['<form method=post action="/">', *rows, "<button>Answer</button></form>"])
    if isinstance(task, TextTask):
        area = f'<label>{escape(task.text)} <textarea name="c0" rows="6" required></textarea></label>'
        return "\n".join(['<form method=post action="/">', area, "<button>Answer</button></form>"])
    if isinstance(task, PictureTask):
        return (
            '<form method=post action="/" enctype="multipart/form-data"><label>Pictures '
            '<input type=file name=pictures multiple required accept="image/*"></label>'
            "<button>Answer</button></form>"
        )
    shape = ", ".join(map(str, task.input_shape))
    return f"<p>It answers programs: POST /predict with x, an array (N, {escape(shape)}).</p>"


def _field(place: int, name: str, column: object) -> str:
    if not isinstance(column, CategoryColumn):
        return f"<label>{escape(name)} <input name=c{place} inputmode=decimal autocomplete=off></label>"
    options = "".join(f"<option>{escape(value)}</option>" for value in column.values)
    return f'<label>{escape(name)} <select name=c{place}><option value=""></option>{options}</select></label>'


def _answers(predictions: Sequence[Mapping[str, Any]]) -> str:
    return _table([_answer(one) for one in predictions]) + "".join(map(_mask, predictions))


def _mask(one: Mapping[str, Any]) -> str:
    """Return a mask as a picture in the page; nothing where the answer is none."""
    if "mask" not in one:
        return ""
    return f'<p><img alt="mask of {escape(one["name"])}" src="data:image/png;base64,{escape(one["mask"])}"></p>'


def _answer(one: Mapping[str, Any]) -> list[str]:
    if "reason" in one:
        return [one["name"], "no answer", one["reason"]]
    if "probabilities" in one:
        chances = ", ".join(f"{name} {chance:.1%}" for name, chance in one["probabilities"].items())
        return [one["name"], one.get("class", "each label"), chances]
    if "shares" in one:
        return [one["name"], "mask", ", ".join(f"{name} {share:.1%}" for name, share in one["shares"].items())]
    bounds = f"{number(one['low'], 2)} to {number(one['high'], 2)}" if "low" in one else ""
    return [one["name"], number(one["value"], 2), bounds]


def _scores(served: Served) -> str:
    rows = []
    for score in served.model.record.scores:
        bounds = "" if score.low is None or score.high is None else f"{score.low:.3f} to {score.high:.3f}"
        rows.append([score.name, f"{score.value:.3f}", bounds, f"{score.num} {score.rows} rows"])
    return f"<h2>How good it was</h2>{_table(rows)}" if rows else ""


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
