"""Models of a site: built by name, split into backbone and head, with pretrained weights."""

from consilium.client.models.build import Model, build_model, get_weights, marked, set_weights, train_mode
from consilium.client.models.devices import device_of
from consilium.client.models.division import Names, divide
from consilium.client.models.features import TwoExtractors, WithNeighbours, flattened, head_layer, watched
from consilium.client.models.frozen import Cut, cut, features_of
from consilium.client.models.pretrained import load_pretrained
from consilium.client.models.shifted import Shifted, num_features

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
    "marked",
    "num_features",
    "set_weights",
    "train_mode",
    "watched",
]
