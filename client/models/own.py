"""Models of packages of one's own, built by the name that a study gives them."""

from pydantic import ValidationError
from torch import nn

from consilium.common.errors import ConfigError, ModelError, clean
from consilium.common.study.models import model_settings
from consilium.common.study.parts import check_not_shadowed, implementation_of
from consilium.common.study.sentences import describe
from consilium.common.study.training import ModelConfig


def build_own(
    config: ModelConfig, *, input_shape: tuple[int, ...], num_outputs: int
) -> tuple[nn.Module, frozenset[str]] | None:
    """Build a model of a package of one's own with the state_dict names of its head; None where none has this name.

    The implementation is called as `implementation(settings, input_shape=..., num_outputs=...)` and returns the module
    and the names of its head; it must draw from torch's own generator alone.

    Raises:
        ConfigError: the package may not be used, or cannot be imported.
        ModelError: it returns something else, or names that the module does not have.
    """
    who = f"model '{clean(config.name, 100)}'"
    try:
        settings = model_settings(config.name, config.settings)
    except ValidationError as error:
        raise ConfigError(describe(error, f"{who}: settings")) from error
    if settings is None:
        return None
    from consilium.client.models import vision  # here, because a table study needs no torchvision

    if config.name in vision.vision_names():
        check_not_shadowed("models", config.name)
    build = implementation_of("models", config.name)
    try:
        module, head = build(settings, input_shape=input_shape, num_outputs=num_outputs)
    except ModelError:
        raise
    except Exception as error:  # whatever the package's own code raises
        why = clean(f"{type(error).__name__}: {error}", 300)
        raise ModelError(f"{who} cannot be built for inputs {input_shape} and {num_outputs} outputs: {why}") from error
    if not isinstance(module, nn.Module) or not head or not set(head) <= set(module.state_dict()):
        raise ModelError(f"{who} must return a torch module and names of its state_dict that are its head")
    return module, frozenset(head)
