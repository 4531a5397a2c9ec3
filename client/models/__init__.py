"""Models of a site: built by name, split into backbone and head, with pretrained weights."""

from client.models.build import Model, build_model, get_weights, set_weights, train_mode
from client.models.devices import device_of
from client.models.division import Names, divide
from client.models.features import TwoExtractors, WithNeighbours, flattened, head_layer, watched
from client.models.frozen import Cut, cut, features_of
from client.models.pretrained import load_pretrained
from client.models.shifted import Shifted, num_features

__all__ = [
    "Cut",
    "Model",
    "Names",
    "Shifted",
    "TwoExtractors",
    "WithNeighbours",
    "build_model",
    "cut",
    "device_of",
    "divide",
    "features_of",
    "flattened",
    "get_weights",
    "head_layer",
    "load_pretrained",
    "num_features",
    "set_weights",
    "train_mode",
    "watched",
]
