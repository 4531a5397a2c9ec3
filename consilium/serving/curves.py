"""Charts of an evaluation: ROC and calibration of classes; predicted against true, and residuals, of numbers."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from consilium.comparison.evaluation import ClassScores
from consilium.comparison.number_scores import NumberScores
from consilium.findings.charts import COLOURS, chart
from consilium.findings.decimals import number
from consilium.serving.metric import Metric
from consilium.serving.metrics import Floats, Labels, Truth

MOST_CURVES = 12
"""So many classes get an ROC curve of their own."""
MOST_POINTS = 2000
BINS = 10
"""Bins of a calibration curve."""

Figures = list[tuple[str, Markup]]


def figures_of(truth: Truth, metrics: Sequence[Metric]) -> Figures:
    """Return the charts, each with its caption."""
    if isinstance(truth.scores, NumberScores):
        return _of_numbers(truth.scores, truth.width)
    if isinstance(truth.scores, ClassScores):
        return [_calibration(truth, truth.scores), *_roc_curves(truth, truth.scores, metrics)]
    return []


def _roc_curves(truth: Truth, scores: ClassScores, metrics: Sequence[Metric]) -> Figures:
    binary, figures = len(truth.classes) == 2, Figures()
    auroc = next(one.interval for one in metrics if one.name == "auroc")
    for place in [1] if binary else range(min(len(truth.classes), MOST_CURVES)):
        is_class, name = scores.y == place, truth.classes[place]
        if is_class.all() or not is_class.any():
            continue  # a curve needs both
        false_rate, true_rate, _ = roc_curve(is_class, scores.probabilities[:, place])
        caption = f"ROC of '{name}'{'' if binary else ' against the rest'}, {int(is_class.sum())} of {len(scores)} rows"
        if binary and auroc is not None:
            caption += f"; AUROC {number(auroc.value)}"
        figures.append((caption, _roc(caption, false_rate, true_rate)))
    return figures


def _roc(label: str, false_rate: Floats, true_rate: Floats) -> Markup:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=COLOURS["majority"], linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(false_rate, true_rate, color=COLOURS["personal"], linewidth=1.8)
        _unit_square(axes)
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")

    return chart(label, draw, height=2.9)


def _calibration(truth: Truth, scores: ClassScores) -> tuple[str, Markup]:
    """Return how often the model is right where it says so; of two classes, how often the second is there."""
    if len(truth.classes) == 2:
        outcome, said = (scores.y == 1), scores.probabilities[:, 1]
        what, axis = f"probability of '{truth.classes[1]}'", "share that is"
    else:
        outcome, said = scores.predicted == scores.y, scores.probabilities.max(axis=1)
        what, axis = "probability of the predicted class", "share that is right"
    found, mean = calibration_curve(outcome.astype(np.int64), said, n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], said), minlength=BINS)
    sizes = counts[counts > 0]
    points = "; ".join(f"{number(p)}: {number(q)} of {n}" for p, q, n in zip(mean, found, sizes, strict=True))
    caption = f"Calibration: {what}, and how often it is so; larger points are more rows"

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=COLOURS["majority"], linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(mean, found, color=COLOURS["global"], linewidth=1)
        axes.scatter(mean, found, s=14 + 130 * sizes / sizes.sum(), color=COLOURS["global"], zorder=3)
        _unit_square(axes)
        axes.set_xlabel("said")
        axes.set_ylabel(axis)

    return caption, chart(f"{caption}. {points}", draw, height=2.9)


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid()
    axes.set_axisbelow(True)


def _of_numbers(scores: NumberScores, width: float | None) -> Figures:
    rows = _some(len(scores))
    true, said = scores.y[rows], scores.predicted[rows]
    shown = "" if len(rows) == len(scores) else f" ({len(rows)} of {len(scores)} rows, evenly chosen)"
    ends = [float(min(true.min(), said.min())), float(max(true.max(), said.max()))]
    band = "" if width is None else "; the band is the calibrated interval"

    def against(axes: Axes) -> None:
        axes.plot(ends, ends, color=COLOURS["majority"], linewidth=1, linestyle=(0, (4, 3)))
        axes.scatter(true, said, s=9, color=COLOURS["personal"], alpha=0.6, linewidths=0)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")

    def residuals(axes: Axes) -> None:
        axes.axhline(0, color=COLOURS["majority"], linewidth=1, linestyle=(0, (4, 3)))
        if width is not None:
            axes.axhspan(-width, width, color=COLOURS["global"], alpha=0.15, linewidth=0)
        axes.scatter(said, true - said, s=9, color=COLOURS["personal"], alpha=0.6, linewidths=0)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true - predicted")

    captions = (f"Predicted against true{shown}", f"Residuals: true minus predicted{shown}{band}")
    return [(text, chart(text, draw, height=2.9)) for text, draw in zip(captions, (against, residuals), strict=True)]


def _some(count: int) -> Labels:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(np.int64))
