"""The model that a study begins with, built as the run will build it, with this site's file of weights."""

from consilium.client.methods import build_method
from consilium.client.models import Model, divide
from consilium.client.models.pretrained import cached_weights
from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.client.site.beginnings import initial_model
from consilium.client.training.private import check_private
from consilium.common.errors import ConfigError, ConsiliumError
from consilium.common.study.parts import only
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import PretrainedConfig


def check_model(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Build the model that a study begins with: what the run would refuse is refused here, with the same sentence."""
    if study is None:
        return skipped("model", "no study known yet")
    wanted, absent = study.model.pretrained, None
    try:
        with only(config.parts):
            if wanted is not None and wanted.weights is not None:
                path, url = cached_weights(study.model.name, wanted.weights)
                absent = None if path.is_file() else f"'{path.name}' is fetched from {url} at the start"
            model = _built(config, study, with_weights=absent is None)
    except ConsiliumError as error:
        return failed("model", str(error), _fix(error, wanted), type(error))
    text = f"'{study.model.name}' of {_size(model)}"
    if absent is not None:
        return warned("model", f"{text}; {absent}", "allow that, or put the file there")
    return passed("model", "; ".join([text, *_about(wanted), *model.notes]))


def _built(config: SiteConfig, study: StudyConfig, *, with_weights: bool) -> Model:
    """Build and divide the model as at the beginning of a run.

    Raises:
        ConsiliumError: as the run.
    """
    if not with_weights:
        study = study.model_copy(update={"model": study.model.model_copy(update={"pretrained": None})})
    method = build_method(study.method)
    model = initial_model(study, method, study.task.input_shape, weights_dir=config.weights_dir)
    divide(model, method)
    if study.privacy.examples is not None:
        check_private(model)
    return model


def _size(model: Model) -> str:
    sizes = {name: value.numel() for name, value in model.module.named_parameters()}
    trained = sum(size for name, size in sizes.items() if name in model.trainable)
    return f"{sum(sizes.values()):,} numbers, {trained:,} of them trained"


def _about(wanted: PretrainedConfig | None) -> list[str]:
    if wanted is None:
        return []
    if wanted.folder is not None:
        return [f"begins with '{wanted.folder}': its {len(wanted.files)} files have the sha256 of the study"]
    pinned = "its sha256 is the one in the study" if wanted.sha256 else "the study pins no sha256"
    return [f"begins with '{wanted.file or wanted.weights}': {pinned}"]


def _fix(error: ConsiliumError, wanted: PretrainedConfig | None) -> str:
    if isinstance(error, ConfigError):
        return "do what the sentence says here, at this site; where it is about the study, ask the coordinator"
    if wanted is not None and wanted.folder is not None:
        return f"put the coordinator's folder '{wanted.folder}' into weights_dir of site.toml, each file as it was"
    if wanted is None or wanted.file is None:
        return "ask the coordinator: [model] of the study does not go with its [task] or [method]"
    return (
        f"put the coordinator's '{wanted.file}' into weights_dir of site.toml; where it lies there already, ask the "
        "coordinator for another file or another model.name"
    )
