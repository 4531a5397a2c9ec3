"""Models of a site: built by name, split into backbone and head, with pretrained weights."""

from client.models.build import Model, build_model, get_weights, set_weights, train_mode
from client.models.features import WithNeighbours
from client.models.frozen import Cut, cut, features_of
from client.models.pretrained import load_pretrained

__all__ = [
    "Cut",
    "Model",
    "WithNeighbours",
    "build_model",
    "cut",
    "features_of",
    "get_weights",
    "load_pretrained",
    "set_weights",
    "train_mode",
]
