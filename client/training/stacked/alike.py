"""Which trainings can be one stack, and why others are done by themselves."""

from collections.abc import Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from consilium.client.training.request import Pull, Training

# torch exports BatchNorm1d to 3d and SyncBatchNorm, but their common base only under this name; likewise dropout.
_BatchNorm = nn.modules.batchnorm._BatchNorm
_Dropout = nn.modules.dropout._DropoutNd


@dataclass(frozen=True, eq=False)
class _Structure:
    """How a module is built, which does not change as long as it lives.

    Args:
        form: its layers with their settings, and the shapes of its arrays.
        batch_norm: the names of BatchNorm's weights; one without a name trains never.
        draws: whether a layer draws random numbers in training.
    """

    form: Hashable
    batch_norm: frozenset[str]
    draws: bool


_structures: WeakKeyDictionary[nn.Module, _Structure] = WeakKeyDictionary()


def _structure_of(module: nn.Module) -> _Structure:
    if (known := _structures.get(module)) is None:
        layers = list(module.named_modules())
        known = _structures[module] = _Structure(
            form=(
                tuple((path, type(layer), layer.extra_repr()) for path, layer in layers),
                tuple((name, value.shape, value.dtype) for name, value in arrays_of(module).items()),
            ),
            batch_norm=frozenset(f"{path}.weight" for path, layer in layers if isinstance(layer, _BatchNorm)),
            draws=any(isinstance(layer, _Dropout) and layer.p > 0 for _, layer in layers),
        )
    return known


def arrays_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by their names."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def trained_names(asked: Training) -> frozenset[str]:
    """Return the names of the parameters that a training may change."""
    trainable = asked.model.trainable
    return trainable if asked.names is None else trainable & frozenset(asked.names)


def why_alone(asked: Training) -> str | None:
    """Return why a training cannot be part of a stack, in words for a report; None where it can."""
    work = asked.work
    if work.noise is not None:
        return "noise on gradients (privacy.examples)"
    if asked.own is not None and asked.own.step is None:
        return "steps of the method's own"
    if asked.forward is not None or asked.loss is not None or asked.extra:
        return "a loss of the method's own"
    if asked.correction is not None and type(asked.correction) is not Pull:
        return "a correction of the method's own"
    if work.precision != "float32":
        return f"training.precision = '{work.precision}'"
    if work.augment is not None:
        return "training.augment"
    if work.micro_batch_size is not None and work.micro_batch_size < work.batch_size:
        return "a site's micro_batch_size"
    if not len(work.examples) or not work.num_steps or work.aim.row_losses(*_nothing(work.examples.y)) is None:
        return "a loss of a batch as a whole"
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in asked.model.module.modules()):
        return "hooks of the model"
    structure = _structure_of(asked.model.module)
    if structure.draws:
        return "dropout"
    return "BatchNorm that is trained" if structure.batch_norm & trained_names(asked) else None


def _nothing(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answers and labels of no rows."""
    return torch.zeros(0, *(y.shape[1:] or (1,)), device=y.device), y[:0]


def stack_key(asked: Training) -> Hashable:
    """Return what must be equal in all trainings of a stack, for one that can be part of one."""
    work, pull = asked.work, asked.correction
    examples = work.examples
    return (
        _structure_of(asked.model.module).form,
        trained_names(asked),
        (examples.x.shape[1:], examples.x.dtype, examples.x.device, examples.y.shape[1:], examples.y.dtype),
        (work.optimiser, work.learning_rate, work.momentum, work.weight_decay, work.clip_gradient, work.aim),
        None if work.rates is None else (work.rates, work.num_steps),
        (*sorted(pull.strength.items()), None, *sorted(pull.shift)) if isinstance(pull, Pull) else None,
        None if asked.own is None else asked.own.settings,
    )
