"""Parts of one's own: algorithms, models, readers, metrics and tasks of other packages, under names that studies use.

A package offers a part by an entry point in one of the groups `consilium.methods`, `.strategies`, `.weightings`,
`.models`, `.readers`, `.metrics` and `.tasks`; the entry point's name is the part's name, and what it names is a
`Part`. A part is imported when a study or a site's settings name it, and only if its package may be used here.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel, Field, GetCoreSchemaHandler, ValidatorFunctionWrapHandler, WrapValidator

from consilium.common.errors import ConfigError, clean, listed
from consilium.common.study.names import Sha256, Version
from consilium.common.study.packages import GROUPS, Offer, digest_of_package, offers
from consilium.common.study.ranges import variants
from consilium.common.study.record import Record

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_SAME = re.compile(r"[-_.]+")


@dataclass(frozen=True)
class Part:
    """What an entry point names: the settings of a part of one's own, and what does the work.

    Args:
        settings: a subclass of the settings that the built-in parts of its group have (`MethodSettings`, ...).
        implementation: the class or function; or its place as text, `module:name`, which is imported at the side that
            runs it alone. A server reads the settings of a method, and need not have what the method is written with.
            None for a task, which is settings alone.
    """

    settings: type[Record]
    implementation: Any = None


class OwnPackage(Record):
    """A package of one's own, by name, version and digest: in `site.toml` one whose code may run at the site."""

    package: str = Field(min_length=1, max_length=100)
    """The package's name, as `pip` knows it."""
    version: Version
    """The version that is installed."""
    sha256: Sha256
    """The digest of its files; `consilium site parts` prints it."""

    @property
    def text(self) -> str:
        """The entry as `site.toml` has it."""
        return f'[[parts]]\npackage = "{self.package}"\nversion = "{self.version}"\nsha256 = "{self.sha256}"'


_only: ContextVar[tuple[OwnPackage, ...] | None] = ContextVar("consilium_parts", default=None)
"""The packages that may be used; None: any that is installed, as for a coordinator, who chose the study."""


@contextmanager
def only(packages: Iterable[OwnPackage]) -> Iterator[None]:
    """Let no other packages than these be used in this block: a site's, which decides whose code runs there."""
    token = _only.set(tuple(packages))
    try:
        yield
    finally:
        _only.reset(token)


def own_part(group: str, name: str) -> Part | None:
    """Return the part that an installed package offers under a name; None where no package does.

    Raises:
        ConfigError: two packages offer it, this site's settings do not name the package, its version or digest is
            another one, it cannot be imported, or it is not what the group expects.
    """
    offer = offer_of(group, name)
    if offer is None:
        return None
    check_allowed(offer)
    try:
        part = offer.entry.load()
    except Exception as error:  # whatever the package's own code raises
        why = clean(f"{type(error).__name__}: {error}", 300)
        raise ConfigError(f"{offer.what} cannot be imported: {why}") from error
    if not isinstance(part, Part) or not (isinstance(part.settings, type) and issubclass(part.settings, Record)):
        raise ConfigError(
            f"{offer.what}: '{clean(offer.entry.value, 200)}' is no Part of a settings class and an implementation "
            "(consilium.parts.Part)"
        )
    return part


def offer_of(group: str, name: str) -> Offer | None:
    """Return who offers a part; None where no package does.

    Raises:
        ConfigError: two packages offer it.
    """
    if not _NAME.fullmatch(name):
        return None
    found = offers(group, name)
    if len(found) > 1:
        packages = listed(sorted(one.package for one in found), 4)
        raise ConfigError(
            f"{GROUPS[group]} '{name}' is offered by {len(found)} packages, {packages}: uninstall all but one of them"
        )
    return found[0] if found else None


def check_not_shadowed(group: str, name: str) -> None:
    """Refuse a built-in name that an installed package offers too: which of the two is meant would be a guess.

    Raises:
        ConfigError: names the package.
    """
    if found := offers(group, name):
        raise ConfigError(
            f"{GROUPS[group]} '{name}' is built in, and package '{found[0].package}' offers another one under the same "
            "name: it needs a name of its own, or is uninstalled"
        )


def package_of(offer: Offer) -> OwnPackage:
    """Return the package of a part with its digest, as a site names it."""
    return OwnPackage(package=offer.package, version=offer.version, sha256=digest_of_package(offer))


def check_allowed(offer: Offer) -> None:
    """Refuse the code of a package that this site's settings do not name; a coordinator's may be any.

    Raises:
        ConfigError: says what is missing in site.toml, or what differs from it.
    """
    packages = _only.get()
    if packages is None:
        return
    here = package_of(offer)
    named = next((one for one in packages if _same(one.package, here.package)), None)
    if named is None:
        raise ConfigError(
            f"{offer.what} is code that this site's settings do not name: once somebody who can judge it has read it, "
            f'add the table [[parts]] with package = "{here.package}", version = "{here.version}", sha256 = '
            f"\"{here.sha256}\" to site.toml ('consilium site parts' prints it)"
        )
    if named.version != here.version:
        raise ConfigError(
            f"{offer.what}: site.toml names version {named.version} in [[parts]], installed is {here.version}: install "
            "the version that was agreed on, or have the other one read and name it"
        )
    if named.sha256 != here.sha256:
        raise ConfigError(
            f"{offer.what}: its files have the digest {here.sha256}, site.toml names {named.sha256} in [[parts]]: "
            "install the files that were agreed on, or have these read and name them"
        )


def _same(one: str, other: str) -> bool:
    return _SAME.sub("-", one).lower() == _SAME.sub("-", other).lower()


def implementation_of(group: str, name: str) -> Any:
    """Return the class or function of a part of one's own.

    Raises:
        ConfigError: there is no such part, it may not be used here, or it cannot be imported.
    """
    part = own_part(group, name)
    if part is None:
        raise ConfigError(f"there is no {GROUPS[group]} '{clean(name, 100)}' here: {_hint(group)}")
    if not isinstance(part.implementation, str):
        return part.implementation
    module, _, attribute = part.implementation.partition(":")
    offer = offer_of(group, name)
    top = offer.entry.module.partition(".")[0] if offer is not None else ""
    if module.partition(".")[0] != top:
        raise ConfigError(f"{GROUPS[group]} '{name}': its implementation '{module}' is no module of its own package")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever the package's own code raises
        why = clean(f"{type(error).__name__}: {error}", 300)
        raise ConfigError(f"{GROUPS[group]} '{name}': '{part.implementation}' cannot be imported: {why}") from error


def own_settings(group: str, name: str, base: type[Record]) -> type[Record] | None:
    """Return the settings class of a part of one's own; None where no package offers it.

    Raises:
        ConfigError: as `own_part`, or its settings are no subclass of the group's.
    """
    part = own_part(group, name)
    if part is None:
        return None
    if not issubclass(part.settings, base):
        raise ConfigError(
            f"{GROUPS[group]} '{name}': its settings '{part.settings.__name__}' are no {base.__name__}, expected a "
            "subclass of it"
        )
    return part.settings


def no_such_kind(group: str, name: str, known: Iterable[str], *, what: str = "kind") -> str:
    """Return the sentence on a name that is neither built in nor offered by an installed package."""
    names = [*known, *(one.name for one in offers(group))]
    close = difflib.get_close_matches(name[:200], names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    shown = name if len(name) <= 100 else f"{name[:100]}... ({len(name)} characters)"
    return f"there is no {what} '{clean(shown, 200)}'; {hint}known: {', '.join(names)}; {_hint(group)}"


def _hint(group: str) -> str:
    return f"one of a package of your own is known once that is installed (entry point consilium.{group})"


@dataclass(frozen=True)
class OwnKinds:
    """Lets a union of settings, told apart by `kind`, take the settings of parts of one's own too.

    Args:
        group: of the entry points.
        base: of the settings.
    """

    group: str
    base: type[Record]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Wrap the union's own checks; what is written is what the settings' own class writes."""
        known = {variant.model_fields["kind"].default: variant for variant in variants(source)}

        def check(value: Any, union: ValidatorFunctionWrapHandler) -> Any:
            kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            if not isinstance(kind, str) or isinstance(value, tuple(known.values())):
                return union(value)
            try:
                if kind in known:
                    check_not_shadowed(self.group, kind)
                    return union(value)
                return self._own(kind, value, known)
            except ConfigError as error:
                raise ValueError(str(error)) from error

        schema: Any = WrapValidator(check).__get_pydantic_core_schema__(source, handler)
        return schema | {"serialization": {"type": "any"}, "metadata": {type(self).__name__: self}}

    def _own(self, kind: str, value: Any, known: Iterable[str]) -> BaseModel:
        settings = own_settings(self.group, kind, self.base)
        if settings is None:
            raise ValueError(no_such_kind(self.group, kind, known))
        field = settings.model_fields.get("kind")
        if field is None or field.default != kind:
            raise ValueError(f"'{settings.__name__}' must have the field kind: Literal['{kind}'] = '{kind}'")
        return settings.model_validate(value)
