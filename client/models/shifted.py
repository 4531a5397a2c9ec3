"""A model whose head is given its features with a vector added: a site's own bias of the features."""

import torch
from torch import Tensor, nn

from consilium.client.models.build import Model
from consilium.client.models.features import flattened, head_layer, watched


class Shifted(nn.Module):
    """Answers `head(phi(x) + shift)`, with phi(x) what the model's head is given.

    Its state_dict holds the model under `model.`, and the `shift` `(D,)` next to it. Maps `(D, H, W)` are shifted
    channel by channel; a model that is one module (`linear`) is given shifted inputs.

    Args:
        model: stays the same module, trained or not.
        shift: `(D,)`, D as `flattened` gives it; copied.
    """

    def __init__(self, model: Model, shift: Tensor) -> None:
        super().__init__()
        self.model, self._layer = model.module, head_layer(model)
        self.shift = nn.Parameter(shift.clone())

    def see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits `(B, outputs)` and the features `(B, D)` as they are before the shift."""
        with watched(self.model, self._layer) as ask:
            hook = self.model.get_submodule(self._layer).register_forward_pre_hook(lambda _, args: self._moved(args[0]))
            try:
                logits, features = ask(x)
            finally:
                hook.remove()
        return logits, flattened(features, self._layer)

    def _moved(self, features: Tensor) -> Tensor:
        maps = bool(self._layer) and features.ndim > 2
        shape = (-1, *[1] * (features.ndim - 2)) if maps else features.shape[1:]
        return features + self.shift.reshape(shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, outputs)`."""
        return self.see(inputs)[0]


@torch.no_grad()
def num_features(model: Model, input_shape: tuple[int, ...]) -> int:
    """Return D: how many features a model's head is given for an example; the model is on the CPU."""
    model.module.eval()
    layer = head_layer(model)
    with watched(model.module, layer) as ask:
        return flattened(ask(torch.zeros(1, *input_shape))[1], layer).shape[1]
