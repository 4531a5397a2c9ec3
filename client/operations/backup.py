"""The backup of a site: its folder with key, settings and state, but not its data."""

from pathlib import Path

from consilium.client.operations.site_folder import SETTINGS
from consilium.client.privacy.ledger import LEDGER
from consilium.client.site.feature_cache import FEATURES
from consilium.common.errors import ConfigError
from consilium.common.host.backup import Manifest, Tree, Written, backup, restore
from consilium.common.host.files import only_one, sweep
from consilium.common.study.load import NO_SITE, load_site
from consilium.common.study.site import SiteConfig

TREE = "site"


def backup_site(file: Path, folder: Path, *, passphrase: str | None = None) -> Written:
    """Write a backup of a site that does not run.

    Raises:
        ConfigError: the folder is no site's, some of what the site needs lies elsewhere, or the file exists already.
        StateError: the site runs, or something cannot be read or written.
    """
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"'{folder}' is no site's folder: it has no {SETTINGS}; {NO_SITE}")
    config, root = load_site(folder / SETTINGS), folder.resolve()
    if file.resolve().is_relative_to(root):
        raise ConfigError(f"'{file}' lies in the folder that it is to be the backup of: write it somewhere else")
    _check_inside(config, root)
    left_out = _left_out(config, root)
    runs = f"site '{config.name}' runs on this machine: stop it first, so that its backup is of one moment"
    with only_one(config.state_dir / ".lock", otherwise=runs):
        sweep(config.state_dir, depth=4)
        tree = Tree(TREE, root, lambda path: path in left_out)
        return backup(file, [tree], kind="site", passphrase=passphrase)


def restore_site(file: Path, folder: Path, *, is_current: bool = False, passphrase: str | None = None) -> Written:
    """Read the backup of a site into a folder that is empty or not there.

    Args:
        is_current: the site has answered nothing since the backup was made.

    Raises:
        ConfigError: it is no whole backup of a site, the folder is not empty, or it has a privacy ledger and nobody
            said that it is current.
        StateError: it cannot be read, or the folder cannot be written.
    """

    def check(manifest: Manifest) -> None:
        has_ledger = any(each.path.endswith(f"/{LEDGER}") for each in manifest.files)
        if has_ledger and not is_current:
            raise ConfigError(
                f"this backup of {manifest.created} has a privacy ledger, which lacks what left the site since: its "
                "patients' budget would be counted too small. If the site has answered nothing since, restore it with "
                "--nothing-since; else the study begins anew here, with a budget that people have to agree on"
            )

    return restore(file, [Tree(TREE, folder)], kind="site", passphrase=passphrase, check=check)


def _check_inside(config: SiteConfig, root: Path) -> None:
    needed = {
        "state_dir": config.state_dir,
        "private_key": config.private_key,
        "certificate": config.certificate,
        "ca_certificate": config.ca_certificate,
        "study_key": config.study_key,
        "peers": config.peers,
    }
    for name, path in needed.items():
        if not path.resolve().is_relative_to(root):
            raise ConfigError(
                f"{name} = '{path}' lies outside of '{root}', so this backup would lack it: move it there, or copy "
                "both by yourself while the site does not run"
            )


def _left_out(config: SiteConfig, root: Path) -> frozenset[Path]:
    """Return what is no part of a backup: data, which the site has elsewhere, weights to begin with, and a cache."""
    elsewhere = (config.data.path, config.data.test, config.weights_dir, config.state_dir / FEATURES)
    paths = {path.resolve() for path in elsewhere if path is not None}
    return frozenset(path for path in paths if path != root and path.is_relative_to(root))
