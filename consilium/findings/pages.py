"""Pages from Jinja2 templates: whatever comes from outside is escaped, a missing value is an error, nothing loads."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from consilium.findings.charts import DASHES
from consilium.findings.decimals import DASH, bounds, counted, number, point

VERDICT_TITLES = {
    "helps": "Helps",
    "hurts": "Hurts",
    "unclear": "No clear effect",
    "too_few": "Too little to tell",
    "unknown": "Nothing to compare",
    "stays": "Stays alone",
    "withheld": "Withheld",
}
"""What stands above the sentence of a site."""


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """Return a page that opens offline: no script, no request, light and dark.

    Args:
        package: whose folder `templates` holds the template; the base and its parts are this package's.
    """
    return _environment(package).get_template(template).render(values)


@lru_cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__name__.rpartition(".")[0])]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "bounds": bounds, "point": point, "counted": counted}
    environment.globals |= {"DASH": DASH, "DASHES": DASHES, "VERDICT_TITLES": VERDICT_TITLES}
    return environment


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as dotted names and texts."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(str(inner) for inner in value)
    else:
        yield name, DASH if value is None else str(value)
