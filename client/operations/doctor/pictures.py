"""What a site's pictures are like, and what looks wrong about them; none of this leaves the site."""

from consilium.client.data import read_site
from consilium.client.operations.doctor.finding import Finding, passed, warned
from consilium.client.operations.doctor.labels import label_lines
from consilium.common.errors import ConsiliumError
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import PictureTask

_INDENT = "\n" + 6 * " "


def check_pictures(config: SiteConfig, study: StudyConfig | None) -> list[Finding]:
    """Return levels and sizes of the pictures, the labels' shares, and what looks wrong; nothing if there are none.

    Data that cannot be read are for the check of the data to name.
    """
    if study is None or not isinstance(study.task, PictureTask):
        return []
    try:
        raw = read_site(config, study).raw
    except ConsiliumError:
        return []
    text = f"shown here only:{_INDENT}{_INDENT.join([*raw.seen, *label_lines(raw, study.task)])}"
    if not raw.odd:
        return [passed("pictures", text)]
    fix = (
        "look at some of these pictures; what the study sets (task.pixel_range, task.size) is for the coordinator to "
        "change, what this site sets ([data] in site.toml) for you"
    )
    return [warned("pictures", f"{'; '.join(raw.odd)}{_INDENT}{text}", fix)]
