"""The backup of a server: its home with keys and register, and the folders of its runs."""

import json
from pathlib import Path

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.backup import Tree, Written, backup, restore
from consilium.common.host.files import check_free, only_one, sweep, write_atomically
from consilium.common.host.twice import read_twice, write_twice
from consilium.server.operations.home import ServerHome

HOME, RUNS = "home", "runs"
SKIPPED_NUMBERS = 10**9
"""By so much the numbers of orders grow that a restored run signs: sites refuse those that they have answered since."""


def backup_server(file: Path, home: ServerHome, runs: Path, *, passphrase: str | None = None) -> Written:
    """Write a backup of a server that does not run.

    Args:
        runs: the folder with the folders of its runs.

    Raises:
        ConfigError: there is no server's home, or the file exists already, or lies in one of the folders.
        StateError: the server or a run is going on, or something cannot be read or written.
    """
    if not home.study_key.is_file():
        raise ConfigError(f"'{home.path}' is no server's home: it has no '{home.study_key.name}'")
    passing = {home.objects.resolve(), home.control.resolve()}
    trees = [Tree(HOME, home.path.resolve(), lambda path: path in passing), Tree(RUNS, runs.resolve())]
    for tree in trees:
        if file.resolve().is_relative_to(tree.folder):
            raise ConfigError(f"'{file}' lies in a folder that it is to be the backup of: write it somewhere else")
    going_on = "stop it first, so that the backup is of one moment; its runs go on when it is started again"
    with only_one(home.path / ".lock", otherwise=f"the server in '{home.path}' runs: {going_on}"):
        for lock in runs.glob("*/.lock"):
            check_free(lock, otherwise=f"run '{lock.parent.name}' is going on: {going_on}")
            sweep(lock.parent, depth=2)
        sweep(home.path)
        home.stopped()  # a server that was killed has left where it listened
        return backup(file, trees, kind="server", passphrase=passphrase)


def restore_server(file: Path, home: Path, runs: Path, *, passphrase: str | None = None) -> Written:
    """Read the backup of a server into two folders that are empty or not there.

    Raises:
        ConfigError: it is no whole backup of a server, or a folder is not empty.
        StateError: it cannot be read, or a folder cannot be written.
    """
    written = restore(file, [Tree(HOME, home), Tree(RUNS, runs)], kind="server", passphrase=passphrase)
    _move_runs(home / "runs.json", Path(written.manifest.trees[RUNS]), runs.resolve())
    for numbers in runs.glob("*/orders"):
        try:
            write_atomically(numbers, str(int(numbers.read_text(encoding="ascii")) + SKIPPED_NUMBERS).encode())
        except (OSError, ValueError) as error:
            raise StateError(
                f"cannot read '{numbers}', by which sites tell new orders from old ones: {error}"
            ) from error
    return written


def _move_runs(file: Path, before: Path, now: Path) -> None:
    """Let the list of runs name their folders where they are now."""
    content, _ = read_twice(file)
    if content is None or before == now:
        return
    try:
        entries = json.loads(content)
        for entry in entries:
            folder = Path(entry["job"]["folder"])
            if folder.parent == before:
                entry["job"]["folder"] = str(now / folder.name)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StateError(f"cannot read the runs in '{file}': {error}") from error
    write_twice(file, json.dumps(entries, indent=1).encode())
