"""Small networks of our own that read series `(B, T, C)`: convolutions over time, and a gated recurrent unit."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from consilium.common.errors import ModelError

WIDTH = 64
"""Features before the head."""
_GROUPS = 8
_STATE = 64


def build_series(name: str, *, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Build `cnn1d` or `gru`; its head is the linear layer `head`.

    Args:
        input_shape: `(T, C)`.

    Raises:
        ModelError: the inputs are no series.
    """
    if len(input_shape) != 2:
        raise ModelError(
            f"model '{name}' takes series (T, C), but the task has examples of shape {list(input_shape)}: choose "
            "another model"
        )
    channels = input_shape[1]
    backbone, width = OrderedDict[str, nn.Module](gru=Gru(channels, _STATE)), _STATE
    if name == "cnn1d":
        backbone, width = _convolutions(channels), WIDTH
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(backbone), head=nn.Linear(width, num_outputs)))


class ChannelsFirst(nn.Module):
    """Series `(B, T, C)` as convolutions take them: `(B, C, T)`."""

    def forward(self, series: Tensor) -> Tensor:
        """Return the same numbers with time last."""
        return series.transpose(1, 2)


def _convolutions(channels: int) -> "OrderedDict[str, nn.Module]":
    """Return two convolution blocks over time and a layer of `WIDTH` features (about 28,000 weights)."""
    project = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool1d(4),
            flatten=nn.Flatten(),
            linear=nn.Linear(4 * 64, WIDTH),
            norm=nn.LayerNorm(WIDTH, elementwise_affine=False),
            relu=nn.ReLU(),
        )
    )
    return OrderedDict(turn=ChannelsFirst(), block1=_block(channels, 32, 7), block2=_block(32, 64, 5), project=project)


def _block(channels_in: int, channels_out: int, width: int) -> nn.Module:
    # GroupNorm, not BatchNorm: each series is normalised by itself, as private training needs it.
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv1d(channels_in, channels_out, width, padding=width // 2, bias=False),
            norm=nn.GroupNorm(_GROUPS, channels_out),
            relu=nn.ReLU(),
            pool=nn.MaxPool1d(2, ceil_mode=True),
        )
    )


class Gru(nn.Module):
    """A gated recurrent unit, whose last state is what the head sees (about 13,000 weights for one channel).

    Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder, 2014, https://arxiv.org/abs/1406.1078, with
    the reset gate behind the product, as cuDNN and torch have it. From h_0 = 0, for t = 1, 2, ..., T::

        r = sigmoid(W_r x_t + b_r + U_r h + c_r)          u = sigmoid(W_u x_t + b_u + U_u h + c_u)
        n = tanh(W_n x_t + b_n + r (U_n h + c_n))         h = (1 - u) n + u h

    Names and layout of the arrays are those of `torch.nn.GRU`. It is written out because that one has no gradients of
    single rows, no second derivatives on a GPU, and no gradients there in evaluation mode.
    """

    def __init__(self, channels: int, state: int) -> None:
        """Draw the weights uniformly within 1 / sqrt(state), as torch does."""
        super().__init__()
        bound = 1 / math.sqrt(state)
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * state, channels).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * state, state).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.empty(3 * state).uniform_(-bound, bound))
        self.bias_hh_l0 = nn.Parameter(torch.empty(3 * state).uniform_(-bound, bound))

    def forward(self, series: Tensor) -> Tensor:
        """Return the state `(B, S)` after the last step of series `(B, T, C)`."""
        given = series @ self.weight_ih_l0.t() + self.bias_ih_l0
        state = given.new_zeros(given.shape[0], self.weight_hh_l0.shape[1])
        for step in given.unbind(1):
            reset, update, new = step.chunk(3, dim=1)
            of_reset, of_update, of_new = (state @ self.weight_hh_l0.t() + self.bias_hh_l0).chunk(3, dim=1)
            passing = torch.sigmoid(update + of_update)
            fresh = torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)
            state = fresh + passing * (state - fresh)
        return state
