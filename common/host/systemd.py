"""Units of systemd: a program that starts with the machine, is started again whenever it ends, and may do little else.

Keys and their quoting: systemd.unit(5), systemd.service(5) and systemd.exec(5), release 245 or later.
"""

import pwd
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import ConfigError, clean, is_clean

RESTART_SECONDS = 5
"""After this time a program that ended is started again; there is no limit to how often."""
USAGE, CONFIG = 2, 3
"""Exit codes of a wrong command line and of wrong settings: the same start would end in the same way."""
UNQUOTABLE = "\"'\\"
"""Signs that systemd's lists of paths and command lines quote in different ways."""
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))

_HARDENED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077
"""
"""What a program may not do, whoever starts it."""
_CONFINED = """\
ProtectSystem=strict
ProtectHome=read-only
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
"""
"""What it may not see or change of the machine; a user's own systemd cannot keep it from all of that."""


@dataclass(frozen=True)
class Unit:
    """One program as a service.

    Args:
        name: of the unit, without `.service`.
        description: what it is, for lists and logs.
        command: absolute path of the program, and its arguments.
        writable: folders that it writes into; they exist, and all else is read-only to it.
        read_only: folders within those that it may read only.
        final: exit codes after which it is not started again, besides those of a wrong command line or setting.
        owner: the user that it runs as; None: a unit of the user's own systemd.
        devices: whether it may use the machine's devices, such as a GPU.
        low_port: whether it listens on a port below 1024.
    """

    name: str
    description: str
    command: tuple[str, ...]
    writable: tuple[Path, ...]
    read_only: tuple[Path, ...] = ()
    final: tuple[int, ...] = ()
    owner: str | None = None
    devices: bool = False
    low_port: bool = False


def unit_text(unit: Unit) -> str:
    """Return the unit's file.

    Raises:
        ConfigError: a name or path in it cannot be written so that systemd reads it.
    """
    final = " ".join(map(str, sorted({USAGE, CONFIG, *unit.final})))
    lines = [
        *_how_to_install(unit),
        "[Unit]",
        f"Description={_words(unit.description)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        # The colon: a dollar sign is no variable.
        f"ExecStart=:{' '.join(_quoted(word) for word in unit.command)}",
        "Environment=PYTHONUNBUFFERED=1",
        *([f"User={_words(unit.owner)}"] if unit.owner is not None else []),
        "Restart=always",
        f"RestartSec={RESTART_SECONDS}",
        f"RestartPreventExitStatus={final}",
        "# Whatever it started ends with it; a process that memory runs out for is started again by it.",
        "KillMode=control-group",
        "TimeoutStopSec=30",
        "OOMPolicy=continue",
        "",
        _HARDENED + "".join(f"{line}\n" for line in _confinement(unit)),
        "[Install]",
        f"WantedBy={'default' if unit.owner is None else 'multi-user'}.target",
    ]
    return "\n".join(lines) + "\n"


def owner_of(folder: Path) -> str:
    """Return the user to whom a folder belongs, by name where it has one.

    Raises:
        ConfigError: there is no such folder.
    """
    try:
        number = folder.stat().st_uid
    except OSError as error:
        raise ConfigError(f"'{clean(str(folder))}': {error.strerror or error}; make it first") from error
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def outermost(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return where folders really lie, without those that lie in another one of them, in the order of their names."""
    places = sorted({folder.resolve() for folder in folders})
    return tuple(one for one in places if not any(other in one.parents for other in places))


def _confinement(unit: Unit) -> list[str]:
    if unit.owner is None:
        return []
    lines = _CONFINED.splitlines()
    lines.append(f"CapabilityBoundingSet={'CAP_NET_BIND_SERVICE' if unit.low_port else ''}")
    if unit.low_port:
        lines.append("AmbientCapabilities=CAP_NET_BIND_SERVICE")
    if not unit.devices:
        lines.append("PrivateDevices=yes")
    if not any(temporary in (place, *place.parents) for place in unit.writable for temporary in _TEMPORARY):
        lines.append("PrivateTmp=yes")
    lines += [f"ReadWritePaths={_quoted(str(place))}" for place in unit.writable]
    return lines + [f"ReadOnlyPaths={_quoted(f'-{place}')}" for place in unit.read_only]


def _how_to_install(unit: Unit) -> Sequence[str]:
    file = f"{unit.name}.service"
    if unit.owner is None:
        where = f"~/.config/systemd/user/{file}"
        how = f"systemctl --user daemon-reload && systemctl --user enable --now {file}"
        return [f"# Save it as {where}, then: {how}", "# So that it runs without a login: loginctl enable-linger"]
    how = f"systemctl daemon-reload && systemctl enable --now {file}"
    return [f"# Save it as /etc/systemd/system/{file}, then, as root: {how}"]


def _words(text: str) -> str:
    _check(text)
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    _check(text)
    return f'"{_words(text)}"'


def _check(text: str) -> None:
    if not is_clean(text) or any(sign in text for sign in UNQUOTABLE):
        raise ConfigError(
            f"'{clean(text)}': a unit cannot name it: quotes, backslashes, line breaks and other control characters "
            "are not possible there; rename the folder, or use one with another name"
        )
