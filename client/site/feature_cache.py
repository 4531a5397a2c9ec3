"""Examples as the features of a frozen backbone, computed once per site and kept on its disk."""

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import consilium.common
from consilium.client.data import SiteData
from consilium.client.models import Cut, Model, cut, features_of, get_weights
from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically
from consilium.common.weights.arrays import digest

log = logging.getLogger(__name__)

FEATURES = ".features"
"""Folder of a site's `state_dir` for the features of frozen backbones."""
MOST_TIMES_LARGER = 4
"""Features that need more memory than this many times the examples are not kept."""
LEAST_SECONDS = 2.0
"""Features that were computed faster than this are not written to disk."""
MOST_FILES = 4
"""How many sets of features a folder keeps; the oldest go."""
_BATCH = 64
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features, by what they were computed from.

    Args:
        data: digest of the examples, in their splits.
    """

    folder: Path
    data: str

    def apply(self, model: Model, data: SiteData) -> tuple[Model, SiteData]:
        """Return the part of a model that can change, and the data as its inputs; both unchanged if nothing is gained.

        What is trained and measured stays the same up to the last bits of the features: a convolution over 64 images
        may round differently from one over 32.
        """
        parted = cut(model)
        if parted is None or not worthwhile(parted, data.train.x):
            return model, data
        path = self.folder / f"{self._key(model, parted)}.safetensors"
        features = _read(path)
        if features is None:
            began = time.monotonic()
            features = {name: features_of(parted.body, getattr(data, name).x, batch_size=_BATCH) for name in _PARTS}
            seconds = time.monotonic() - began
            log.info("features of the frozen backbone computed seconds=%.1f shape=%s", seconds, features["train"].shape)
            if seconds >= LEAST_SECONDS:
                self._keep(path, features)
        device = data.train.x.device
        train, validation, test = (getattr(data, name).with_inputs(features[name].to(device)) for name in _PARTS)
        return parted.tail, replace(data, train=train, validation=validation, test=test)

    def _key(self, model: Model, parted: Cut) -> str:
        frozen = digest(get_weights(model.module, sorted(set(model.names) - set(parted.tail.names))))
        layers = str(parted.body)  # with every layer's settings, and the graph
        text = "\n".join([self.data, frozen, layers, torch.__version__, consilium.common.__version__])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _keep(self, path: Path, features: dict[str, Tensor]) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, save({name: part.cpu().contiguous() for name, part in features.items()}), mode=0o600)
            files = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
            for old in files[:-MOST_FILES]:
                old.unlink(missing_ok=True)
        except (OSError, StateError) as error:  # a cache that cannot be written costs time, nothing else
            log.warning("features could not be kept on disk reason=%s", error)


def worthwhile(parted: Cut, x: Tensor) -> bool:
    """Say whether the features of examples `x` are tensors per example, and not much larger than these."""
    one = features_of(parted.body, x[:1], batch_size=1)
    return one.shape[:1] == (1,) and one[0].numel() <= MOST_TIMES_LARGER * x[0].numel()


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        features = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    return features if set(features) == set(_PARTS) else None
