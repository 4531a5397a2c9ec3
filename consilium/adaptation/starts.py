"""The starts of an adaptation: the study's initial weights, pretrained or random, and the federated ones."""

from consilium.adaptation.federated import FederatedModel, check_arrays
from consilium.client.data import SiteData
from consilium.client.methods import build_method, extended
from consilium.client.models import Model, Names, build_model, divide, get_weights
from consilium.common.errors import ConfigError
from consilium.common.seeds import seed_for
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arrays import Weights

FEDERATED, PRETRAINED, RANDOM = "federated", "pretrained", "random"


def make_starts(
    site: SiteConfig, study: StudyConfig, data: SiteData, federated: FederatedModel
) -> tuple[Model, dict[str, Weights]]:
    """Return the study's model on the data's device, and the weights of each start."""
    model = _built(study.model, site, study, data)
    initial, shared = get_weights(model.module), divide(model, build_method(study.method)).shared
    if not shared:
        raise ConfigError(f"method '{study.method.kind}' shares nothing, so there is no federated start")
    arrays = check_arrays(federated, {name: initial[name] for name in shared}, study=study.name)
    starts: dict[str, Weights] = {FEDERATED: {**initial, **arrays}}
    if study.model.pretrained is not None:
        starts[PRETRAINED] = initial
    plain = _built(study.model.model_copy(update={"pretrained": None}), site, study, data)
    starts[RANDOM] = get_weights(plain.module)
    model.module.to(data.train.x.device)
    return model, starts


def _built(config: ModelConfig, site: SiteConfig, study: StudyConfig, data: SiteData) -> Model:
    model = build_model(
        config,
        input_shape=data.input_shape,
        num_outputs=study.task.num_outputs,
        weights_dir=site.weights_dir,
        seed=seed_for(study.seed, "initial weights"),
    )
    return extended(build_method(study.method), model, data.input_shape)


def notes_of(model: Model, names: Names) -> list[str]:
    """Return what a reader must know of the starts: what no federation's model holds, and what no step moves."""
    parts = {
        "the head starts fresh": names.personal & model.head,
        "the backbone starts as in the study's initial weights": names.personal - model.head - model.batch_norm,
        "BatchNorm starts as in the study's initial weights": names.personal & model.batch_norm,
    }
    why = "this study keeps it personal, so no federation's model holds it"
    notes = [f"{what}: {why}" for what, part in parts.items() if part]
    if {name for name, _ in model.module.named_parameters()} - model.trainable:
        notes.append("what this study does not train stays as each start has it, in the random start at random")
    return notes
