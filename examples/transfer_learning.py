"""Fine-tune a torch module of your own on one site's data: its backbone is frozen, its head is new.

The module learns ten digits from 1,000 images; a site with 40 images of its own then asks another question of it:
is the digit odd? The same with a backbone that has learned nothing shows what the transfer is worth.
Run: `python examples/transfer_learning.py`
"""

from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.methods.fine_tune import FineTune
from consilium.client.models import Model
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork

SOURCE, SITE = 1000, 40
"""Images that the backbone learns from, and images of the site; the rest is for the test."""
HEAD = frozenset({"head.weight", "head.bias"})


def network(num_outputs: int) -> nn.Module:
    """Return a module with a backbone of 64 features and a linear head."""
    backbone = OrderedDict(linear=nn.Linear(64, 64), norm=nn.BatchNorm1d(64), relu=nn.ReLU())
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(backbone), head=nn.Linear(64, num_outputs)))


def described(module: nn.Module, trainable: frozenset[str]) -> Model:
    """Return a module with what our methods ask of it: which arrays are head, BatchNorm and trainable."""
    names = tuple(module.state_dict())
    norm = frozenset(name for name in names if ".norm." in name)
    return Model(module, HEAD, norm, trainable, names, "average")


def work(examples: Examples) -> LocalWork:
    """Return twenty epochs of SGD on some examples."""
    return LocalWork(
        examples=examples,
        batch_size=32,
        seed=1,
        optimiser="sgd",
        learning_rate=0.05,
        momentum=0.9,
        weight_decay=0.0,
        epochs=20,
        steps=None,
        validation=examples,
    )


def new_task(module: nn.Module, site: Examples) -> nn.Module:
    """Return the module with a new head, trained on the site's examples; its backbone stays as it is."""
    module.head = nn.Linear(64, 1)
    method = FineTune(epochs=20, learning_rate=0.1, layers="head", steps=None, optimiser="sgd")
    return method.personalise(described(module, HEAD), {}, work(site))


def backbone_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all arrays of a module but its head's."""
    return {name: value.clone() for name, value in module.state_dict().items() if name not in HEAD}


def main() -> None:
    """Pretrain, fine-tune, and print what came of it."""
    torch.manual_seed(1)
    pixels, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits))
    x, y = pixels[order].float() / 16, digits[order]
    site, test = (Examples(x[part], y[part] % 2) for part in (slice(SOURCE, SOURCE + SITE), slice(SOURCE + SITE, None)))
    pretrained = network(10)
    train(described(pretrained, frozenset(dict(pretrained.named_parameters()))), work(Examples(x[:SOURCE], y[:SOURCE])))
    before = backbone_of(pretrained)
    for what, module in (("pretrained", pretrained), ("random", network(10))):
        served = new_task(module, site)
        print(f"{what} backbone, new head from {len(site)} images: {evaluate(served, test).accuracy:.3f} right")
    same = all(torch.equal(before[name], value) for name, value in backbone_of(pretrained).items())
    print(f"backbone unchanged: {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()
