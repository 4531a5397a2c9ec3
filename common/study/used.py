"""The packages of one's own that a study uses."""

from collections.abc import Iterator

from consilium.common.study.parts import OwnPackage, offer_of, package_of
from consilium.common.study.study import StudyConfig


def names_of(study: StudyConfig) -> Iterator[tuple[str, str]]:
    """Yield (group, name) of everything in a study that a package could offer."""
    yield "tasks", study.task.kind
    yield "models", study.model.name
    yield "methods", study.method.kind
    yield "strategies", study.strategy.kind
    yield from (("weightings", factor.kind) for factor in study.weights_by.factors)
    yield from (("metrics", name) for name in study.metrics)


def packages_of(study: StudyConfig, *, reader: str | None = None) -> tuple[OwnPackage, ...]:
    """Return the installed packages that a study uses, by their names.

    Args:
        reader: the kind of a site's data, whose reader may be of a package too.

    Raises:
        ConfigError: two packages offer the same part, or a file of one cannot be read.
    """
    wanted = [*names_of(study), *([("readers", reader)] if reader is not None else [])]
    offers = {offer.package: offer for group, name in wanted if (offer := offer_of(group, name)) is not None}
    return tuple(package_of(offers[name]) for name in sorted(offers))
