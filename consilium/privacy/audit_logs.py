"""The sites' audit logs verified: at a site against its ledger, at the coordinator against the heads it has seen."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from consilium.client.privacy.audit import FILE, verified
from consilium.client.wire.orders import Orders
from consilium.common.errors import ConfigError, ConsiliumError, StateError
from consilium.common.events import parts
from consilium.common.events.chain import verify_chain
from consilium.common.events.run import HeadsNoted
from consilium.common.host.audit_heads import is_signed
from consilium.common.host.chained import Head
from consilium.common.host.keys import openssh, read_private_key
from consilium.common.host.study_key import read_study_public
from consilium.common.protocol.audit import AuditHead
from consilium.common.study.load import load_site
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.site_keys import keys_of_lines, known_keys

Heads = list[AuditHead]


@dataclass(frozen=True)
class LogFinding:
    """What is known of one site's audit log.

    Args:
        lines: of the log, or as the last head that was seen has it.
        heads: how many heads were compared.
        problem: a sentence; empty where all is well.
    """

    site: str
    lines: int
    heads: int
    problem: str = ""


def verify_site(settings: Path) -> LogFinding:
    """Verify a site's own log: its chain, its signatures, and that it has the newest head that the ledger knows.

    And the chain of its events, with all parts that were put away.

    Raises:
        ConfigError: the settings or a key cannot be read.
    """
    config = load_site(settings)
    key = read_private_key(config.private_key).public_key()
    orders = Orders(
        config.state_dir, site=config.name, key=read_study_public(config.study_key), max_runs=config.max_runs
    )
    known = [] if orders.audit is None else [orders.audit]
    finding = verify_log(config.state_dir / FILE, site=config.name, keys=(), known=known, newest=openssh(key))
    try:
        parts.verify_log(config.state_dir / "events.jsonl")
    except StateError as error:
        return replace(finding, problem=finding.problem or str(error))
    return finding


def verify_log(path: Path, *, site: str, keys: Collection[str], known: Heads, newest: str = "") -> LogFinding:
    """Verify a log, and that it went through every known head: else it was changed, cut or put back since.

    Args:
        keys: all that the site has had, in OpenSSH form; empty: any that the log names is taken.
        newest: the key that the last lines must be signed with; empty: any of these.
    """
    heads, lines, key = {Head()}, 0, newest
    try:
        for head, of_line in verified(path, site=site, keys=keys):
            heads.add(head)
            lines, key = head.count, of_line
    except StateError as error:
        return LogFinding(site, lines, len(known), str(error))
    missing = [each.count for each in known if each.head not in heads]
    if missing:
        problem = (
            f"the log '{path}' has {lines} lines, and not the line {missing[0]} that was seen before: it was changed, "
            "cut or put back"
        )
        return LogFinding(site, lines, len(known), problem)
    another = newest and key != newest
    return LogFinding(site, lines, len(known), "its last lines are not signed with this site's key" if another else "")


def verify_run(folder: Path, *, logs: Mapping[str, Path], home: Path | None) -> list[LogFinding]:
    """Verify the heads that a run saw of each site: they grow, are signed, and are in the logs that sites gave.

    Args:
        logs: a copy of a site's log, by the site's name.
        home: the server's, with the keys of its sites; None: signatures are not checked.

    Raises:
        ConfigError: the run saw no head of a site whose log is given.
        StateError: the run's own log was changed.
    """
    records = RunFolder(folder)
    verify_chain(records.events)
    heads: dict[str, Heads] = {}
    for event in records.read_events():
        if isinstance(event, HeadsNoted):
            for site, head in event.heads.items():
                heads.setdefault(site, []).append(head)
    if unknown := sorted(set(logs) - set(heads)):
        raise ConfigError(f"run '{folder.name}' saw no head of an audit log of site '{unknown[0]}'")
    keys = known_keys(home) if home is not None else {}
    return list(_findings(heads, logs, keys if home is not None else None))


def _findings(
    heads: Mapping[str, Heads], logs: Mapping[str, Path], keys: Mapping[str, frozenset[str]] | None
) -> Iterator[LogFinding]:
    for site, seen in sorted(heads.items()):
        problem = _broken(seen) or ("" if keys is None else _unsigned(site, seen, keys.get(site, frozenset())))
        if problem or site not in logs:
            yield LogFinding(site, seen[-1].count, len(seen), problem)
        else:
            yield verify_log(logs[site], site=site, keys=keys.get(site, ()) if keys is not None else (), known=seen)


def _broken(seen: Heads) -> str:
    for before, after in pairwise(seen):
        if after.count <= before.count:
            return f"the log had {before.count} lines, and then {after.count}: it was cut, or put back"
    return ""


def _unsigned(site: str, seen: Heads, keys: Collection[str]) -> str:
    for head in seen:
        if not _is_signed(head, site, keys):
            return f"the head after line {head.count} is signed with no key that was approved for this site"
    return ""


def _is_signed(head: AuditHead, site: str, keys: Collection[str]) -> bool:
    return any(is_signed(head.head, head.signature, site=site, key=key) for key in keys_of_lines(keys))


def read_logs(given: Collection[str]) -> dict[str, Path]:
    """Return the files of `SITE=FILE` by the site's name.

    Raises:
        ConfigError: one is not of that form, or there is no such file.
    """
    logs = {}
    for one in given:
        site, _, file = one.partition("=")
        if not site or not Path(file).is_file():
            raise ConfigError(f"--log: expected SITE=FILE with a copy of that site's {FILE}, got '{one}'")
        logs[site] = Path(file)
    return logs


def problem_of(findings: Collection[LogFinding]) -> type[ConsiliumError] | None:
    """Return the kind of error that findings are; None where all is well."""
    return StateError if any(each.problem for each in findings) else None
