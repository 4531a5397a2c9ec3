"""The arrays that sites share in a study, as far as its model can be built here."""

from consilium.common.errors import ConsiliumError
from consilium.common.seeds import seed_for
from consilium.common.study.study import StudyConfig
from consilium.privacy.visibility import Shapes


def shared_shapes(study: StudyConfig) -> Shapes | None:
    """Return the shapes of a study's shared arrays; None where there is no torch, or not the package of its model."""
    try:
        from consilium.client.methods import build_method, extended
        from consilium.client.models import build_model, divide, get_weights
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None  # the coordinator's machine may have none
    try:
        method = build_method(study.method)
        built = build_model(
            study.model.model_copy(update={"pretrained": None}),  # of the same shapes, and no file is needed
            input_shape=study.task.input_shape,
            num_outputs=study.task.num_outputs,
            weights_dir=None,
            seed=seed_for(study.seed, "initial weights"),
        )
        model = extended(method, built, study.task.input_shape)
    except ConsiliumError:
        return None
    shared, weights = divide(model, method).shared, get_weights(model.module)
    return {name: tuple(weights[name].shape) for name in sorted(shared)}
