"""Packages of one's own that are installed at a site, as `site.toml` names those whose code may run there."""

from collections.abc import Iterator
from itertools import groupby

from consilium.common.errors import ConfigError
from consilium.common.study.packages import GROUPS, offers
from consilium.common.study.parts import OwnPackage, package_of
from consilium.common.study.site import SiteConfig


def entries(config: SiteConfig | None) -> Iterator[str]:
    """Yield a text for each installed package that offers parts: what it offers, and its entry ready to paste.

    Args:
        config: the site's settings, if there are any: they say which packages are named already.
    """
    for name, group in groupby(sorted(offers(), key=lambda one: one.package), key=lambda one: one.package):
        parts = list(group)
        what = ", ".join(f"{GROUPS[one.group]} {one.name}" for one in parts)
        try:
            package = package_of(parts[0])
        except ConfigError as error:
            yield f"# {name} {parts[0].version} offers {what}, and cannot be used: {error}"
            continue
        yield f"# {name} {package.version} offers {what}; {_state(package, config)}\n{package.text}"


def _state(package: OwnPackage, config: SiteConfig | None) -> str:
    if config is None:
        return "no site.toml was read"
    if package in config.parts:
        return "site.toml names it so"
    if any(one.package == package.package for one in config.parts):
        return "site.toml names another version or digest"
    return "site.toml does not name it"
