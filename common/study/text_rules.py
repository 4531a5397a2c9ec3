"""Rules on texts and their models, and on adapters: each returns the sentence, or None."""

from pydantic import ValidationError

from consilium.common.study.models import SMALL_NAMES, model_settings
from consilium.common.study.reading_rules import Settings
from consilium.common.study.text_models import TEXT_SETTINGS, TRANSFORMER, longest
from consilium.common.study.text_task import TextTask


def texts_have_a_model_of_texts(study: Settings) -> str | None:
    """Texts are tokens' numbers, of which a model of tables or images would take one for larger than another."""
    name, texts = study.model.name, isinstance(study.task, TextTask)
    known = ", ".join(f"'{one}'" for one in TEXT_SETTINGS)
    if texts and (name in SMALL_NAMES or "/" in name):
        return f"model.name: model '{name}' reads no texts: choose {known}, or a model of your own"
    if not texts and name in TEXT_SETTINGS:
        return f"model.name: model '{name}' reads texts, but task.kind is '{study.task.kind}': choose another model"
    return None


def models_know_all_tokens(study: Settings) -> str | None:
    """A model of texts has a vector for every token, and a place for each of a text's."""
    task, name = study.task, study.model.name
    if not isinstance(task, TextTask) or name not in TEXT_SETTINGS:
        return None
    try:
        settings = model_settings(name, study.model.settings)
    except ValidationError:
        return None  # said where the settings are read
    known = getattr(settings, "vocabulary", 0)
    if known < task.tokens.size:
        return (
            f"model.settings.vocabulary: the model has vectors for {known} tokens, but task.tokens tells "
            f"{task.tokens.size} apart: set it to {task.tokens.size} or more"
        )
    most = None if settings is None else longest(settings)
    if most is not None and task.length > most:
        return f"task.length: model '{name}' has places for {most} tokens (model.settings.positions), got {task.length}"
    return None


def folders_are_of_transformers(study: Settings) -> str | None:
    """A folder of files is of a model of the package transformers, and such a model comes as a folder."""
    pretrained, name = study.model.pretrained, study.model.name
    if pretrained is None or (pretrained.folder is not None) == (name == TRANSFORMER):
        return None
    if name == TRANSFORMER:
        return "model.pretrained: the weights of model 'transformer' come as a folder: give 'folder' and 'files'"
    return f"model.pretrained.folder: is for model '{TRANSFORMER}', got '{name}': give 'file' or 'weights'"


def adapters_are_what_is_trained(study: Settings) -> str | None:
    """With an adapter, adapters and head are trained, and nothing else."""
    model = study.model
    if model.adapter is None:
        return None
    if model.trainable != "all":
        return (
            f"model.adapter: trains small matrices and the head, so model.trainable = '{model.trainable}' would say "
            "something else: leave it out"
        )
    if model.name == "linear":
        return "model.adapter: model 'linear' is a head without a backbone: leave it out, or choose 'mlp'"
    return None


TEXT_RULES = (
    texts_have_a_model_of_texts,
    models_know_all_tokens,
    folders_are_of_transformers,
    adapters_are_what_is_trained,
)
