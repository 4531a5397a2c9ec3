"""The model, its data and its training: what both sides of the app share."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NUM_FEATURES, NUM_EXAMPLES = 8, 200


def make_model() -> nn.Module:
    """Return a small model with the same initial weights everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Linear(16, 2))


def load_data(number: int) -> tuple[DataLoader, DataLoader]:
    """Return training and validation batches; each number has other examples of the same rule."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(NUM_EXAMPLES, NUM_FEATURES, generator=generator)
    y = (x[:, 0] - x[:, 1] + 0.5 * x[:, 2] > 0).long()
    cut = NUM_EXAMPLES * 4 // 5
    training = DataLoader(TensorDataset(x[:cut], y[:cut]), batch_size=16, shuffle=True)
    return training, DataLoader(TensorDataset(x[cut:], y[cut:]), batch_size=64)


def train(model: nn.Module, batches: DataLoader, *, epochs: int, learning_rate: float) -> float:
    """Train a model and return the mean loss of the last epoch."""
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(epochs):
        losses = []
        for x, y in batches:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def evaluate(model: nn.Module, batches: DataLoader) -> tuple[float, float, int]:
    """Return loss, accuracy and the number of examples."""
    model.eval()
    loss = right = count = 0.0
    for x, y in batches:
        output = model(x)
        loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
        right += (output.argmax(1) == y).sum().item()
        count += len(y)
    return loss / count, right / count, int(count)
