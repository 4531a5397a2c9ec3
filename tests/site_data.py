"""A site's data from its files to scaled examples in one call; a real site settles the scale in between."""

from consilium.client.data import SiteData, read_data
from consilium.common.study.scale import Scale
from consilium.common.study.site import DataConfig
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig


def load_data(
    config: DataConfig,
    task: Task,
    split: SplitConfig,
    *,
    site: str,
    min_examples: int,
    share_class_counts: bool = False,
    scale: Scale | None = None,
) -> SiteData:
    """Return a site's data, scaled by `scale`, by the scale that the study fixes, or by the site's own."""
    unscaled = read_data(
        config, task, split, site=site, min_examples=min_examples, share_class_counts=share_class_counts
    )
    return unscaled.scaled(scale or task.fixed_scale)
