"""A site's own curve of who is left without the event, by Kaplan and Meier, for its own staff.

It lies in the run's folder below the state folder, as a table and as a picture, and does not leave the site: its steps
are single patients.
"""

import csv
import html
import io
from pathlib import Path

import numpy as np
import torch

from consilium.client.data import SiteData
from consilium.common.host.files import write_atomically
from consilium.common.study.task_base import TaskBase
from consilium.common.survival.curves import Steps, kaplan_meier
from consilium.common.survival.times import Times

TABLE, PICTURE = "survival.csv", "survival.svg"
"""Files of a run's folder."""
COLUMNS = ("time", "at_risk", "events", "censored", "share_without_event")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 360, 50, 40
_PRIVATE = 0o600


def write_curve(folder: Path, data: SiteData, task: TaskBase) -> None:
    """Write the curve of all of a site's own rows; nothing where labels are no times.

    A test set that all sites share (`task.test`) is nobody's own and left out.

    Args:
        folder: of the run.

    Raises:
        StateError: the folder cannot be written.
    """
    if (survival := task.survival_times) is None:
        return
    parts = [data.train, data.validation, *([] if task.test else [data.test])]
    of = Times.of_labels(torch.cat([part.y.cpu() for part in parts]).numpy())
    curve = kaplan_meier(of)
    write_atomically(folder / TABLE, _table(of, curve).encode(), mode=_PRIVATE)
    title = f"Share of {len(of)} patients without '{survival.event}', against '{survival.time}'"
    write_atomically(folder / PICTURE, _picture(curve, title).encode(), mode=_PRIVATE)


def _table(of: Times, curve: Steps) -> str:
    """Return a line for each time, as CSV."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for time, share in zip(curve.times.tolist(), curve.values.tolist(), strict=True):
        here = of.times == time
        events = int((here & of.events).sum())
        at_risk = int((of.times >= time).sum())
        lines.writerow([f"{time:.9g}", at_risk, events, int(here.sum()) - events, f"{share:.6f}"])
    return text.getvalue()


def _picture(curve: Steps, title: str) -> str:
    """Return the steps as a picture: a share of 1 at the top, of 0 at the bottom, the last time at the right."""
    last = float(curve.times[-1]) or 1.0
    x = _LEFT + (_WIDTH - _LEFT - 10) * np.concatenate([[0.0], curve.times]) / last
    y = 30 + (_HEIGHT - 30 - _BOTTOM) * (1 - np.concatenate([[curve.first], curve.values]))
    steps = "".join(f" H{across:.1f} V{down:.1f}" for across, down in zip(x[1:], y[1:], strict=True))
    bottom = _HEIGHT - _BOTTOM
    marks = "".join(
        f'<text x="{_LEFT - 8}" y="{30 + (bottom - 30) * (1 - share) + 4:.1f}" text-anchor="end">{share:g}</text>'
        for share in (0, 0.5, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="18">{html.escape(title)}</text>{marks}'
        f'<path d="M{_LEFT} 30 V{bottom} H{_WIDTH - 10}" fill="none" stroke="#888"/>'
        f'<path d="M{x[0]:.1f} {y[0]:.1f}{steps}" fill="none" stroke="#00795a" stroke-width="2"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 18}">0</text>'
        f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 18}" text-anchor="end">{last:.6g}</text></svg>\n'
    )
