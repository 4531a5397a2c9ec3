"""What every part of a package of one's own must hold, whatever it is: its entry point, its name, its settings."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from consilium.common.study.method_base import MethodSettings
from consilium.common.study.methods import MethodConfig
from consilium.common.study.metrics import METRICS, MetricSettings
from consilium.common.study.models import SMALL_NAMES, ModelSettings, library_of
from consilium.common.study.packages import digest_of_package, offers
from consilium.common.study.parts import Part, implementation_of, offer_of, own_part
from consilium.common.study.ranges import variants
from consilium.common.study.record import Record
from consilium.common.study.site import DataConfig, DataSettings
from consilium.common.study.strategies import StrategyConfig, StrategySettings
from consilium.common.study.task import Task
from consilium.common.study.task_base import TaskBase
from consilium.common.study.weightings import FactorConfig, FactorSettings

UNIONS: Mapping[str, Any] = {
    "methods": MethodConfig,
    "strategies": StrategyConfig,
    "weightings": FactorConfig,
    "readers": DataConfig,
    "tasks": Task,
}
BASES: Mapping[str, type[Record]] = {
    "methods": MethodSettings,
    "strategies": StrategySettings,
    "weightings": FactorSettings,
    "readers": DataSettings,
    "tasks": TaskBase,
    "models": ModelSettings,
    "metrics": MetricSettings,
}


def built_in(group: str) -> frozenset[str]:
    """Return the built-in names of a group, but for torchvision's models."""
    if group == "models":
        return frozenset(SMALL_NAMES)
    if group == "metrics":
        return frozenset(METRICS)
    return frozenset(variant.model_fields["kind"].default for variant in variants(UNIONS[group]))


def is_built_in(group: str, name: str) -> bool:
    """Say whether a name is built in, or names a model of a library such as `timm/resnet18`."""
    return name in built_in(group) or (group == "models" and library_of(name) is not None)


def every(group: str, registry: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of a registry, and of what installed packages offer in its group."""
    return tuple(sorted({*registry, *(offer.name for offer in offers(group))}))


def part_of(group: str, name: str) -> Part:
    """Return an installed part."""
    part = own_part(group, name)
    assert part is not None, f"no installed package offers '{name}' in consilium.{group}: install it (pip install -e .)"
    return part


def is_found_under_a_name_of_its_own(group: str, name: str) -> None:
    """One installed package offers it, and nothing that is built in has the name."""
    assert offer_of(group, name) is not None, f"no installed package offers '{name}' in consilium.{group}"
    assert name not in built_in(group)


def has_settings_of_its_group(group: str, name: str) -> None:
    """Its settings derive from the group's, and say the name as their `kind`, where a group has kinds."""
    settings = part_of(group, name).settings
    assert issubclass(settings, BASES[group])
    if group in UNIONS:
        assert name == settings.model_fields["kind"].default


def has_an_implementation(group: str, name: str) -> None:
    """What does the work can be imported; a task is settings alone."""
    part_of(group, name)
    assert group == "tasks" or callable(implementation_of(group, name))


def has_a_digest(group: str, name: str) -> None:
    """Its files can be read, and two readings give the same digest."""
    offer = offer_of(group, name)
    assert offer is not None
    assert digest_of_package(offer) == digest_of_package(offer)


def settings_survive_their_json(group: str, name: str) -> None:
    """What a study's plan says of it reads as the same settings, fields of its own included."""
    settings = part_of(group, name).settings
    if any(field.is_required() for field in settings.model_fields.values()) or group not in UNIONS:
        return
    adapter: TypeAdapter[Record] = TypeAdapter(UNIONS[group])
    value = adapter.validate_python({"kind": name})
    assert type(value) is settings
    assert value == adapter.validate_json(adapter.dump_json(value))


LAWS: tuple[Callable[[str, str], None], ...] = (
    is_found_under_a_name_of_its_own,
    has_settings_of_its_group,
    has_an_implementation,
    has_a_digest,
    settings_survive_their_json,
)
"""All laws; each takes the group and the part's name."""
