"""A site's settings, its ledger of orders and its audit log, kept open from order to order."""

import logging
from dataclasses import dataclass
from pathlib import Path

from consilium.client.privacy.audit import AuditLog
from consilium.client.wire.orders import Orders
from consilium.common.errors import ConfigError, StateError
from consilium.common.host.keys import read_private_key
from consilium.common.host.study_key import read_study_public
from consilium.common.study.load import load_site
from consilium.common.study.site import SiteConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Books:
    """What a site writes down of orders: which were answered, and what was asked and left."""

    orders: Orders
    audit: AuditLog


_read_settings: dict[Path, tuple[tuple[int, int, int] | None, SiteConfig]] = {}
"""Settings per file, with inode, time and size of the file when it was read, by which a change is noticed."""
_books: dict[Path, tuple[SiteConfig, Books]] = {}


def settings_of(path: Path) -> SiteConfig:
    """Return a site's settings, read again when the file has changed.

    Raises:
        RuntimeError: they cannot be used; the text may go to the server.
    """
    now, known = _facts_of(path), _read_settings.get(path)
    if known is not None and known[0] == now:
        return known[1]
    try:
        config = load_site(path)
        _read_settings[path] = now, config
        return config
    except ConfigError as error:
        log.error("settings cannot be used message=%s", error)
        raise RuntimeError("this site's settings cannot be used; its log says why") from None


def books_of(path: Path) -> Books:
    """Return a site's books, kept open from order to order as long as its settings are the same.

    Raises:
        ConfigError: the study's public key, or the site's own key, cannot be read.
        StateError: one of them is damaged, or the audit log was cut or put back.
    """
    config = settings_of(path)
    if path not in _books or _books[path][0] != config:
        key = read_study_public(config.study_key)
        orders = Orders(config.state_dir, site=config.name, key=key, max_runs=config.max_runs)
        audit = AuditLog(config.state_dir, site=config.name, key=read_private_key(config.private_key))
        if orders.audit is not None and not audit.holds(orders.audit.head):
            raise StateError(
                f"site '{config.name}': the audit log in '{config.state_dir}' was cut or put back: it had "
                f"{orders.audit.count} lines once. Put it back from a backup; without one, begin with an empty "
                "state_dir, and ask the coordinator for a new study key"
            )
        _books[path] = config, Books(orders, audit)
    return _books[path][1]


def close_books() -> None:
    """Read settings, ledgers and logs anew."""
    _read_settings.clear()
    _books.clear()


def _facts_of(path: Path) -> tuple[int, int, int] | None:
    """Return inode, time and size, which change with a file; None for a missing one, which `load_site` reports."""
    try:
        at = path.stat()
    except OSError:
        return None
    return at.st_ino, at.st_mtime_ns, at.st_size
