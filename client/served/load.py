"""Builds a model again from its folder, and answers with it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from consilium.client.data.base import Inputs, Unread
from consilium.client.data.preparation import Preparation
from consilium.client.data.text_tokens import TOKENIZER, read_tokenizer
from consilium.client.methods import build_method, extended, rebuilt
from consilium.client.methods.contract import filled
from consilium.client.models import Model, build_model, divide, set_weights
from consilium.client.served.own_size import MOST_PIXELS, mask_in_size
from consilium.client.training.evaluation import EVALUATION_BATCH, pictures_at_once
from consilium.common.errors import ConsiliumError, DataError, ModelError, clean, listed
from consilium.common.model import LabelTemperatures, ModelRecord, Residuals, Temperature, read_arrays, read_record
from consilium.common.seeds import seed_for
from consilium.common.study.task import PictureTask
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arrays import Weights

UNFILLED = "a value is missing and cannot be filled, or is too large to be scaled"


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of N inputs, in their order.

    Args:
        probabilities: float64 `(N, C)`, each row adds up to 1; None where the answer is a number.
        values: float64 `(N,)` in the label's units; None where it is a class.
        width: half of the interval around each value; None where the model is not calibrated.
        labels: float64 `(N, L)`, the probability of each of several labels; None where an example has one.
        masks: of each picture the class of every pixel, uint8 `(H, W)`, in the picture's own size; None where an answer
            is one of a whole example.
    """

    probabilities: Tensor | None = None
    values: Tensor | None = None
    width: float | None = None
    labels: Tensor | None = None
    masks: tuple[Tensor, ...] | None = None

    @property
    def numbers(self) -> Tensor:
        """Return the probabilities `(N, C)`, those of several labels `(N, L)`, or the values `(N,)`."""
        (found,) = (one for one in (self.probabilities, self.values, self.labels) if one is not None)
        return found

    @property
    def classes(self) -> Tensor:
        """Return the number of the most probable class `(N,)`: of two equal ones the first."""
        if self.probabilities is None:
            raise ValueError("a number and several labels have no classes")
        return self.probabilities.argmax(dim=1)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model from its folder, ready to answer.

    Args:
        module: takes prepared inputs `(N, ...)` and answers logits `(N, outputs)`; in evaluation mode, on the CPU.
    """

    record: ModelRecord
    module: nn.Module
    preparation: Preparation

    def prepared(self, inputs: Inputs) -> Inputs:
        """Return inputs ready for `module`, `x` float32; rows that cannot be filled or scaled are among the unread."""
        x = self.preparation.applied(inputs.x).to(torch.float32)
        usable = torch.isfinite(x.flatten(1)).all(dim=1)
        if bool(usable.all()):
            return replace(inputs, x=x)
        keep, lost = usable.nonzero().flatten(), (~usable).nonzero().flatten().tolist()
        rows = keep.tolist()
        return replace(
            inputs,
            x=x[keep],
            names=tuple(inputs.names[row] for row in rows),
            y=None if inputs.y is None else inputs.y[keep],
            groups=None if inputs.groups is None else inputs.groups[keep],
            kept={name: tuple(texts[row] for row in rows) for name, texts in inputs.kept.items()},
            sizes=None if inputs.sizes is None else tuple(inputs.sizes[row] for row in rows),
            unread=(*inputs.unread, *(Unread(inputs.names[row], f"'{inputs.names[row]}': {UNFILLED}") for row in lost)),
        )

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return what the module answers to prepared inputs `(N, ...)`: `(N, outputs)`.

        Raises:
            ModelError: an answer is no finite number.
        """
        if not len(x):
            return torch.empty(0, self.record.task.num_outputs)
        logits = torch.cat([self.module(part) for part in torch.split(x, EVALUATION_BATCH)])
        if not bool(torch.isfinite(logits).all()):
            raise ModelError("the model answers with numbers that are not finite: inputs or arrays are too large")
        return logits

    def answers(self, prepared: Inputs) -> Answers:
        """Return what the model says of prepared inputs; masks in the size that each picture has in its file.

        Raises:
            DataError: these sizes are too large together.
        """
        if self.record.task.label_kind == "masks":
            return Answers(masks=tuple(self._masks(prepared)))
        return answers_of(self.record, self.logits(prepared.x))

    def masks(self, x: Tensor) -> Tensor:
        """Return the masks of prepared pictures `(N, C, H, W)` in this size, uint8 `(N, H, W)`."""
        parts = [logits.argmax(dim=1).to(torch.uint8) for logits in self._logits_of_pixels(x)]
        return torch.cat(parts) if len(x) else torch.zeros(0, *x.shape[2:], dtype=torch.uint8)

    def _masks(self, prepared: Inputs) -> Iterator[Tensor]:
        sizes = prepared.sizes
        if sizes is None:
            yield from self.masks(prepared.x)
            return
        if (pixels := sum(height * width for height, width in sizes)) > MOST_PIXELS:
            raise DataError(
                f"the masks of {len(sizes)} pictures have {pixels} pixels together, at most {MOST_PIXELS} are answered "
                "at once: ask about fewer pictures"
            )
        logits = (one for part in self._logits_of_pixels(prepared.x) for one in part)
        yield from (mask_in_size(one, size) for one, size in zip(logits, sizes, strict=True))

    def _logits_of_pixels(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the logits `(n, classes, H, W)` of some pictures at a time: those of all would be too large."""
        yield from (self.logits(part) for part in torch.split(x, pictures_at_once(x)) if len(part))


def answers_of(record: ModelRecord, logits: Tensor) -> Answers:
    """Return what logits `(N, outputs)` mean: probabilities after the calibration, or numbers in the label's units.

    Of several labels it is the probability of each.
    """
    number, calibration, exact = record.task.number, record.calibration, logits.to(torch.float64)
    if record.task.label_names:
        return Answers(labels=calibrated(record, exact).sigmoid())
    if number is not None:
        width = calibration.width if isinstance(calibration, Residuals) else None
        return Answers(values=number.to_label(exact[:, 0]), width=width)
    if isinstance(calibration, Temperature):
        exact = exact / calibration.temperature
    if exact.shape[1] == 1:
        one = exact[:, 0].sigmoid()
        return Answers(probabilities=torch.stack([1 - one, one], dim=1))
    return Answers(probabilities=exact.softmax(dim=1))


def calibrated(record: ModelRecord, logits: Tensor) -> Tensor:
    """Return the logits `(N, L)` of several labels after the calibration."""
    if not isinstance(record.calibration, LabelTemperatures):
        return logits
    return logits / torch.tensor(record.calibration.divisors(record.task.label_names), dtype=logits.dtype)


def load_model(folder: Path, *, weights_dir: Path | None = None) -> ServedModel:
    """Return the model in a folder.

    Args:
        weights_dir: where the study's pretrained file lies, for a coordinator's folder, which holds what sites shared
            and not the backbone that none of them trained.

    Raises:
        ModelError: there is no model, it is damaged, of a newer version, or cannot be used away from a site.
    """
    record = read_record(folder)
    if not record.preprocessing.known:
        raise ModelError(
            f"model '{folder}': every site scaled its inputs by its own rows, so new inputs cannot be scaled here; "
            "use the model that a site wrote, or adapt the federation's at a site: consilium adapt"
        )
    if TOKENIZER in record.files or weights_dir is not None:
        read_tokenizer(record.task, folder, weights_dir, who=f"model '{folder}'")
    module = _built(record, read_arrays(folder), folder, weights_dir)
    for name, parameter in module.named_parameters():  # a buffer may hold -inf, as masks of attention do
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"model '{folder}': array '{name}' holds numbers that are not finite")
        parameter.requires_grad_(False)
    preparation = Preparation.of_record(record.preprocessing, channels=isinstance(record.task, PictureTask))
    return ServedModel(record, module, preparation)


def _built(record: ModelRecord, arrays: Weights, folder: Path, weights_dir: Path | None) -> nn.Module:
    """Build the model that a record describes, which may be anybody's.

    Raises:
        ModelError: it cannot be built, or not with these arrays.
    """
    try:
        module = _build(record, arrays, folder, weights_dir).cpu().eval()
        with torch.no_grad():
            module(torch.zeros(1, *record.task.input_shape))  # whether it takes an input at all
        return module
    except ConsiliumError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, MemoryError) as error:  # sizes that no machine can hold
        why = clean(f"{type(error).__name__}: {error}".partition("\n")[0], 200)
        raise ModelError(f"model '{folder}': it cannot be built as its record and its arrays say: {why}") from error


def _build(record: ModelRecord, arrays: Weights, folder: Path, weights_dir: Path | None) -> nn.Module:
    method, config, shape = build_method(record.method), record.model, record.task.input_shape
    if record.complete:
        config = config.model_copy(update={"pretrained": None})
        _check_size(record, config, arrays, folder)
    built = build_model(
        config,
        input_shape=shape,
        num_outputs=record.task.num_outputs,
        weights_dir=weights_dir,
        seed=seed_for(record.provenance.seed, "initial weights"),
    )
    model = extended(method, built, shape)
    try:
        if not record.complete:
            return _completed(model, arrays, record)
        if record.provenance.served == "personal":
            return rebuilt(method, model, arrays)
        return filled(model.module, arrays)
    except ModelError as error:
        raise ModelError(f"model '{folder}': {error}") from error


def _check_size(record: ModelRecord, config: ModelConfig, arrays: Weights, folder: Path) -> None:
    """Refuse a record whose model is larger than its arrays, before any memory is taken for it."""
    try:
        with torch.device("meta"):
            task = record.task
            planned = build_model(
                config, input_shape=task.input_shape, num_outputs=task.num_outputs, weights_dir=None, seed=0
            )
    except (RuntimeError, NotImplementedError, ModelError):
        return  # a module of somebody's own, which has its memory already; or one that cannot be built, as is said next
    described = sum(part.numel() for part in planned.module.state_dict().values())
    if described > (there := sum(array.size for array in arrays.values())):
        raise ModelError(f"model '{folder}': describes a model of {described} numbers, its weights have {there}")


def _completed(model: Model, arrays: Weights, record: ModelRecord) -> nn.Module:
    """Put what the sites shared over the initial weights, as they all have them."""
    if personal := divide(model, build_method(record.method)).personal:
        raise ModelError(
            f"method '{record.method.kind}' keeps a part at each site, which is not in the coordinator's folder: "
            f"{listed(sorted(personal), 3)}; use the model that a site wrote, or adapt the shared part at a site: "
            "consilium adapt"
        )
    set_weights(model.module, arrays)
    return model.module
