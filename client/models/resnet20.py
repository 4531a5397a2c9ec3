"""ResNet-20 for small images (He 2016, "Deep Residual Learning for Image Recognition", section 4.2).

Shortcuts without weights (option A), so 0.27 million parameters at 10 classes. Arrays are named as in the
weights that are commonly shared for it: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self._stride, self._pad = stride, (channels_out - channels_in) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `(B, channels_out, ceil(H / stride), ceil(W / stride))`."""
        hidden = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(inputs)))))
        shortcut = inputs[:, :, :: self._stride, :: self._stride]
        return torch.relu(hidden + functional.pad(shortcut, (0, 0, 0, 0, self._pad, self._pad)))


class ResNet20(nn.Module):
    """Nineteen convolutions and the linear head `linear`; images `(B, channels, H, W)` with H, W >= 4."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16), _stage(16, 32), _stage(32, 64)
        self.linear = nn.Linear(64, num_outputs)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, num_outputs)`."""
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean(dim=(2, 3)))
        return logits


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    first = _Block(channels_in, channels_out, stride=1 if channels_in == channels_out else 2)
    rest = {str(index): _Block(channels_out, channels_out, stride=1) for index in (1, 2)}
    return nn.Sequential(OrderedDict({"0": first, **rest}))
