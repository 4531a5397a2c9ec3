"""The models of series against torch's own layers, row by row, and as what they are exported."""

import pytest
import torch
from torch import nn

from consilium.client.models.series import Gru
from consilium.client.models.small import build_small
from consilium.client.training.rows import row_gradients
from consilium.common.errors import ModelError

NAMES = ("cnn1d", "gru")
every_model = pytest.mark.parametrize("name", NAMES)


def built(name: str, shape: tuple[int, int] = (12, 3), outputs: int = 1) -> nn.Module:
    """Return a model with seeded weights."""
    torch.manual_seed(3)
    return build_small(name, input_shape=shape, num_outputs=outputs)[0]


def test_gru_is_the_one_of_torch() -> None:
    """The same arrays by the same names give the same states and gradients, whatever the order of the steps means."""
    torch.manual_seed(5)
    own, torchs, x = Gru(3, 16), nn.GRU(3, 16, batch_first=True), torch.randn(5, 20, 3)
    torchs.load_state_dict(own.state_dict())
    given = [x.clone().requires_grad_() for _ in range(2)]
    states = own(given[0]), torchs(given[1])[1][0]
    torch.testing.assert_close(states[0], states[1])
    for state in states:
        state.square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    for name, array in own.named_parameters():
        torch.testing.assert_close(array.grad, torchs.get_parameter(name).grad)
    assert (own(x) - own(x.flip(1))).abs().max() > 0.01


@every_model
def test_a_model_is_small_and_sees_the_order_of_time(name: str) -> None:
    """Fewer than 100,000 numbers; a series backwards is another one; from one step on."""
    model = built(name)
    assert sum(one.numel() for one in model.parameters()) < 100_000
    x = torch.randn(4, 12, 3)
    assert (model(x) - model(x.flip(1))).abs().max() > 1e-3
    assert (2, 4) == built(name, (1, 1), 4)(torch.randn(2, 1, 1)).shape


@every_model
def test_gradients_of_rows_are_those_of_each_row_alone(name: str) -> None:
    """As private training needs them, by torch.func at once; against one row after the other."""
    model, x, y = built(name), torch.randn(5, 12, 3), torch.tensor([0, 1, 1, 0, 1])
    parameters = dict(model.named_parameters())
    rows = row_gradients(model, parameters, x, y)
    assert "_by_torch_func" in rows.__qualname__
    losses, gradients = rows(x, y)
    for row in range(5):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x[row : row + 1])[:, 0], y[row : row + 1].float())
        torch.testing.assert_close(losses[row], loss.detach())
        alone = torch.autograd.grad(loss, list(parameters.values()))
        for found, expected in zip(gradients, alone, strict=True):
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


@every_model
def test_other_inputs_are_refused(name: str) -> None:
    """Rows of a table are no series."""
    with pytest.raises(ModelError, match=rf"model '{name}' takes series \(T, C\), but the task has examples of shape"):
        build_small(name, input_shape=(3,), num_outputs=1)


def test_models_of_images_are_refused_for_series() -> None:
    """With the names of those that do."""
    with pytest.raises(ModelError, match=r"'small_cnn' takes images, but .* choose 'cnn1d', 'gru', 'mlp' or 'linear'"):
        build_small("small_cnn", input_shape=(12, 3), num_outputs=1)
