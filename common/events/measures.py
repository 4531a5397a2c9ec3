"""Which of the numbers that sites measure a live view shows; names come from sites, and only known ones are labels."""

from collections.abc import Collection, Iterator, Mapping

MODELS = ("global", "personal", "local", "train")


def validation_measures(metrics: Mapping[str, float], others: Collection[str] = ()) -> Iterator[tuple[str, str, float]]:
    """Yield (model, what, value) of each number whose name is known: `loss`, `accuracy`, or one of the `others`.

    Args:
        others: the study's own `metrics`.
    """
    for name, value in metrics.items():
        model, _, what = name.partition(".")
        if model in MODELS and (what in ("loss", "accuracy") or what in others):
            yield model, what, value
