"""Opens a hospital's commitment to its data of a run, for an auditor; its data are read again, as they are now."""

from consilium.client.data import read_site
from consilium.client.privacy.commitment import Commitment, commitment_key
from consilium.client.site.journal import event_log
from consilium.client.site.manifest import readable
from consilium.client.site.state_folder import STUDY
from consilium.common.errors import ConfigError, DataError
from consilium.common.events.site import SITE_EVENTS, PlanAnswered
from consilium.common.protocol.opened import Opened
from consilium.common.study.parts import only
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig


def open_commitment(config: SiteConfig, run: str) -> Opened:
    """Return what shows which data a site had in a run.

    Raises:
        ConfigError: this site shook hands in no such run.
        StateError: what it kept of the run cannot be read.
        DataError: the data are not those that the site had then, or cannot be read.
    """
    event = _handshake(config, run)
    sent = str((event.card or {}).get("data_commitment", ""))
    path = config.state_dir / event.study / run / STUDY
    with only(config.parts):
        with readable(path, site=config.name):
            study = StudyConfig.model_validate_json(path.read_bytes())
        data = read_site(config, study, share_class_counts=config.share_class_counts).digest
    made = Commitment.of(data, run=run, key=commitment_key(config.state_dir, site=config.name))
    if made.value != sent:
        raise DataError(
            f"site '{config.name}': its data are not those that it had in run '{run}': they give the commitment "
            f"{made.value[:12]}, but it sent {sent[:12] or 'none'}; put the files back as they were then"
        )
    return Opened(site=config.name, run=run, data=data, opening=made.opening)


def _handshake(config: SiteConfig, run: str) -> PlanAnswered:
    events = event_log(config).read(SITE_EVENTS)
    shaken = [one for one in events if isinstance(one, PlanAnswered) and one.run == run and one.kind == "handshake"]
    if not shaken:
        raise ConfigError(f"site '{config.name}' took part in no run '{run}': its log has no handshake of that name")
    return shaken[-1]
