"""What of the policy the process that talks to the server applies, before a large payload is fetched into memory.

It needs neither pydantic nor torch. What it lets pass, the worker checks again with all rules; so a policy that cannot
be read here is left to the worker, which then refuses everything.
"""

import hashlib
import logging
import time
import tomllib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from consilium.client.privacy.audit import AuditLog
from consilium.client.privacy.policy.approvals import approved_runs
from consilium.common.errors import ConfigError, PolicyRefused, StateError, clean
from consilium.common.host.keys import read_private_key
from consilium.common.study.limits import REQUESTS_PER_HOUR
from consilium.common.wire.envelope import Order

log = logging.getLogger(__name__)

FILE = "policy.toml"
HOUR_SECONDS = 3600.0
MOST_OF_A_NAME = 200
"""How many characters of a run's name, which nobody has checked yet, are written down."""


@dataclass
class Gate:
    """Lets signed orders pass, or refuses them by what they say of themselves.

    Args:
        settings: the site's `site.toml`.
        state_dir: where its audit log lies.
        key: the file of its private key.
    """

    settings: Path
    state_dir: Path
    key: Path
    _passed: deque[float] = field(default_factory=deque)
    _audit: AuditLog | None = None

    def check(self, order: Order) -> None:
        """Let an order pass, and count it; one that is refused has a line in the audit log.

        Raises:
            PolicyRefused: the policy has expired, its run is not approved, no study was accepted, or as many orders as
                the policy allows have passed within the hour.
            ConsiliumError: the refusal cannot be written down.
        """
        try:
            self._check(order)
        except PolicyRefused as error:
            entry = {
                "run": clean(order.run, MOST_OF_A_NAME),
                "order": order.number,
                "kind": order.kind,
                "order_sha256": hashlib.sha256(order.text.encode()).hexdigest(),
                "payload_sha256": order.payload_digest.hex(),
                "bytes_down": 0,
                "message": str(error),
            }
            self._note(type(error).__name__, entry, order.site)
            raise

    def _note(self, answer: str, entry: Mapping[str, Any], site: str) -> None:
        try:
            if self._audit is None:
                self._audit = AuditLog(self.state_dir, site=site, key=read_private_key(self.key))
            self._audit.note(answer, entry)
        except (StateError, ConfigError) as error:  # its text has paths, and would go to the server
            log.error("refusal not written down message=%s", error)
            raise StateError(
                f"site '{site}' cannot write its audit log, so it answers nothing; its log says why"
            ) from None

    def _check(self, order: Order) -> None:
        folder, policy = self.settings.parent, _values(self.settings.parent / FILE)
        if policy is None:
            return
        now = time.monotonic()
        while self._passed and self._passed[0] <= now - HOUR_SECONDS:
            self._passed.popleft()
        last, most = policy.get("expires"), policy.get("requests_per_hour", REQUESTS_PER_HOUR)
        if isinstance(last, date) and datetime.now(UTC).date() > last:
            raise self._refused(order, "its policy has expired", "expires")
        if policy.get("approve_runs") is True and not _is_approved(folder, order.run):
            raise self._refused(order, f"run '{clean(order.run, MOST_OF_A_NAME)}' is not approved here", "approve_runs")
        if order.kind == "plan" and policy.get("accepted_study", True) and not (folder / "study.toml").is_file():
            raise self._refused(order, "this site has accepted no study", "accepted_study")
        if isinstance(most, int) and len(self._passed) >= most:
            raise self._refused(order, f"{most} plans were obeyed within the hour", "requests_per_hour")
        self._passed.append(now)

    def _refused(self, order: Order, why: str, rule: str) -> PolicyRefused:
        return PolicyRefused(f"site '{order.site}': {why} ({rule} in its policy)")


def _values(path: Path) -> dict[str, Any] | None:
    """Return the values of a policy, none where there is no file; None if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None


def _is_approved(folder: Path, run: str) -> bool:
    try:
        return run in approved_runs(folder)
    except StateError:
        return False
