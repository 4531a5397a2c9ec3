"""The option `--track` of commands that follow a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.common.errors import ConfigError

if TYPE_CHECKING:
    from consilium.tracking.targets import Target

Track = Annotated[
    list[str],
    typer.Option(
        "--track",
        envvar="CONSILIUM_TRACK",
        help="Also write the run's curves to 'tensorboard', 'tensorboard:DIR', 'mlflow' or 'mlflow:URI'; repeatable.",
    ),
]


def targets_of(track: Sequence[str], *, detach: bool = False) -> "list[Target]":
    """Return where a run is tracked to.

    Raises:
        ConfigError: no such tool, its package is missing, or nobody stays to track.
    """
    if not track:
        return []
    if detach:
        raise ConfigError(
            "--track writes while this command follows the run: leave out --detach, or write it afterwards with "
            "'consilium runs export'"
        )
    from consilium.tracking.targets import parse_target

    return [parse_target(text) for text in dict.fromkeys(track)]
