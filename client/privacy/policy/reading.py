"""A site's policy as its file has it now: read anew when it has changed, so that a change holds from the next plan."""

import logging
from pathlib import Path

from consilium.common.errors import ConfigError, PolicyRefused
from consilium.common.study.load import load_policy
from consilium.common.study.policy import PolicyConfig

log = logging.getLogger(__name__)

FILE = "policy.toml"
"""Name of the file beside the `site.toml`."""
_Facts = tuple[int, int, int] | None
_read: dict[Path, tuple[_Facts, PolicyConfig | None]] = {}


def policy_of(settings: Path, *, otherwise: PolicyConfig) -> PolicyConfig:
    """Return the policy beside a `site.toml`.

    Args:
        otherwise: the policy of a site without such a file.

    Raises:
        PolicyRefused: the file is wrong or cannot be read, so no plan is obeyed; the log says what is wrong.
    """
    path = settings.parent / FILE
    now, known = _facts_of(path), _read.get(path)
    if known is None or known[0] != now:
        try:
            known = now, load_policy(path) if now is not None else None
        except ConfigError as error:
            log.error("policy cannot be used message=%s", error)
            raise PolicyRefused("this site's policy cannot be read, so it obeys nothing; its log says why") from None
        _read[path] = known
    return known[1] if known[1] is not None else otherwise


def forget_policies() -> None:
    """Read every policy anew."""
    _read.clear()


def _facts_of(path: Path) -> _Facts:
    """Return inode, time and size, which change with a file; None where there is none."""
    try:
        at = path.stat()
    except FileNotFoundError:
        return (0, 0, 0) if path.is_symlink() else None  # a link to nothing is a policy that cannot be read
    except OSError:  # there, but out of reach: reading it says why
        return 0, 0, 0
    return at.st_ino, at.st_mtime_ns, at.st_size
