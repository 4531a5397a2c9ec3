"""Which Flower apps this site has approved, and where their code lies.

An administrator approves in the site's own folder, under `apps`; the worker only looks there. Code that a
coordinator sends is kept in the state folder, and only if its digest is an approved one.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from consilium.common.errors import ConfigError, ConsiliumError, StateError
from consilium.common.flower.app import FlowerApp, is_digest, read_app, unpack_app, write_app
from consilium.common.host.files import write_atomically

APPS, CODE = "apps", ".flower"
"""Folder of approvals next to the `site.toml`; folder of code that was sent, in the state folder."""
_LEAST_PREFIX = 8


@dataclass(frozen=True)
class Approval:
    """One approved app.

    Args:
        name: of the app; empty where only its digest was approved.
        since: ISO time in UTC.
    """

    digest: str
    name: str
    since: str


def approve(folder: Path, app: FlowerApp | str) -> Approval:
    """Approve an app, with its code, or a digest whose code will come from the coordinator.

    Args:
        folder: the site's.

    Raises:
        ConfigError: the text is no digest.
        StateError: the folder is unwritable.
    """
    digest, name = (app, "") if isinstance(app, str) else (app.digest, app.name)
    if not is_digest(digest):
        raise ConfigError(f"'{digest}' is neither the folder of a Flower app nor a digest of 64 hexadecimal digits")
    if isinstance(app, FlowerApp) and not _holds(folder / APPS / digest, digest):
        shutil.rmtree(folder / APPS / digest, ignore_errors=True)
        write_app(app, folder / APPS / digest)
    found = Approval(digest, name, datetime.now(UTC).isoformat(timespec="seconds"))
    write_atomically(folder / APPS / f"{digest}.json", json.dumps(asdict(found)).encode(), mode=0o600)
    return found


def approvals(folder: Path) -> list[Approval]:
    """Return the approved apps, in the order of approval.

    Raises:
        StateError: the file of an approval is damaged.
    """
    found = []
    for path in (folder / APPS).glob("*.json"):
        try:
            found.append(Approval(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise StateError(f"cannot read the approval '{path}': {error}; approve the app again") from error
    return sorted(found, key=lambda approval: approval.since)


def withdraw(folder: Path, prefix: str, *, state_dir: Path | None) -> str:
    """Withdraw an app's approval and delete its code; return its digest.

    Args:
        prefix: first digits of the digest, enough to tell it from others.

    Raises:
        ConfigError: no approved app has such a digest, or several have.
    """
    known = [path.stem for path in (folder / APPS).glob("*.json")]
    fitting = [digest for digest in known if len(prefix) >= _LEAST_PREFIX and digest.startswith(prefix)]
    if len(fitting) != 1:
        raise ConfigError(
            f"{len(fitting)} approved apps have a digest that begins with '{prefix}', expected one (at least "
            f"{_LEAST_PREFIX} digits); 'consilium site approve-app --list' shows them"
        )
    (folder / APPS / f"{fitting[0]}.json").unlink(missing_ok=True)
    for place in (folder / APPS, state_dir / CODE if state_dir is not None else None):
        if place is not None:
            shutil.rmtree(place / fitting[0], ignore_errors=True)
    return fitting[0]


def check_approved(folder: Path, digest: str, *, site: str) -> None:
    """Check that an app may be run here.

    Raises:
        ConfigError: it is not approved; names the digest and the command that approves it.
    """
    if not (is_digest(digest) and (folder / APPS / f"{digest}.json").is_file()):
        raise ConfigError(
            f"site '{site}' has not approved the Flower app with the digest {digest}; its administrator reads the "
            f"app's code and then runs 'consilium site approve-app APP_DIR' (or the digest in place of the folder)"
        )


def keep_code(folder: Path, state_dir: Path, digest: str, content: bytes) -> None:
    """Keep the code of an approved app that has come from the coordinator, if it is not here yet.

    Raises:
        ConfigError: the code is another app's.
    """
    if (folder / APPS / digest).is_dir() or _holds(state_dir / CODE / digest, digest):
        return
    app = unpack_app(content, who="the app that came from the coordinator")
    if app.digest != digest:
        raise ConfigError(f"the code that came from the coordinator has the digest {app.digest}, approved is {digest}")
    shutil.rmtree(state_dir / CODE / digest, ignore_errors=True)
    write_app(app, state_dir / CODE / digest)


def code_of(folder: Path, state_dir: Path, digest: str, *, site: str) -> tuple[Path, FlowerApp]:
    """Return the folder of an approved app's code, and the app, read anew.

    Raises:
        ConfigError: it is not here, or is not what was approved.
    """
    for place in (folder / APPS / digest, state_dir / CODE / digest):
        if place.is_dir():
            app = read_app(place, strict=True)
            if app.digest != digest:
                raise ConfigError(
                    f"site '{site}': the code in '{place}' is not what was approved, its digest is {app.digest} and "
                    f"not {digest}; approve the app again"
                )
            return place.resolve(), app
    raise ConfigError(f"site '{site}' has approved the app {digest} but has not got its code yet")


def _holds(place: Path, digest: str) -> bool:
    try:
        return read_app(place, strict=True).digest == digest
    except ConsiliumError:
        return False
