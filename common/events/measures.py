"""Which of the numbers that sites measure a live view shows; names come from sites, and only known ones are labels."""

from collections.abc import Iterator, Mapping

MODELS = ("global", "personal", "local", "train")


def validation_measures(metrics: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    """Yield (model, `loss` or `accuracy`, value) of each number whose name is known."""
    for name, value in metrics.items():
        model, _, what = name.partition(".")
        if model in MODELS and what in ("loss", "accuracy"):
            yield model, what, value
