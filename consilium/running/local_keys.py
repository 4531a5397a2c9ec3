"""The keys of a federation in one process, for studies that sum securely: made where they are missing, and exchanged.

In a real federation people check them, by way of the coordinator's bundles; here one person holds all sites' folders.
"""

from collections.abc import Mapping
from pathlib import Path

from consilium.client.privacy.secure.peers import write_peers
from consilium.common.host.keys import make_site_key, openssh, read_private_key
from consilium.common.study.load import load_site
from consilium.common.study.study import StudyConfig


def provide_keys(study: StudyConfig, sites: Mapping[str, Path]) -> None:
    """Give every site a key of its own, and the keys of all sites of the study; for other studies do nothing.

    Args:
        sites: each one's `site.toml`.

    Raises:
        ConfigError: a site's settings or its key cannot be used.
        StateError: a site's folder cannot be written.
    """
    if not study.privacy.secure_aggregation:
        return
    keys, places = dict[str, str](), list[Path]()
    for name, path in sorted(sites.items()):
        config = load_site(path)
        if not config.private_key.is_file():
            make_site_key(config.private_key, comment=name)
        keys[name] = openssh(read_private_key(config.private_key).public_key())
        places.append(config.peers)
    for place in places:
        write_peers(place, keys)
