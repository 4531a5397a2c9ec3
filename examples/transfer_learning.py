"""Fine-tune a torch module of your own on one site's data: its backbone is frozen, its head is new.

The module learns ten digits from 1,000 images; a site with 40 images of its own then asks another question of it:
is the digit odd? The same with a backbone that has learned nothing shows what the transfer is worth.
Run: `python examples/transfer_learning.py`
"""

from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import consilium as cs

SOURCE, SITE = 1000, 40
"""Images that the backbone learns from, and images of the site; the rest is for the test."""


def network(num_outputs: int) -> nn.Module:
    """Return a module with a backbone of 64 features and a linear head."""
    backbone = OrderedDict(linear=nn.Linear(64, 64), norm=nn.BatchNorm1d(64), relu=nn.ReLU())
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(backbone), head=nn.Linear(64, num_outputs)))


def backbone_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all arrays of a module but its head's."""
    return {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("head.")}


def main() -> None:
    """Pretrain, fine-tune, and print what came of it."""
    torch.manual_seed(1)
    pixels, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits))
    x, y = pixels[order].float() / 16, digits[order]
    odd, site, test = y % 2, slice(SOURCE, SOURCE + SITE), slice(SOURCE + SITE, None)
    pretrained, _ = cs.fine_tune(network(10), (x[:SOURCE], y[:SOURCE]), epochs=20, lr=0.05, momentum=0.9)
    before = backbone_of(pretrained)
    for what, module in (("pretrained", pretrained), ("random", network(10))):
        module.head = nn.Linear(64, 1)
        served, _ = cs.fine_tune(module, (x[site], odd[site]), epochs=20, lr=0.1, momentum=0.9, layers="head")
        right = ((served(x[test])[:, 0] > 0) == odd[test]).float().mean()
        print(f"{what} backbone, new head from {SITE} images: {right:.3f} right")
        if what == "pretrained":
            after = backbone_of(served)
    same = all(torch.equal(before[name], value) for name, value in after.items())
    print(f"backbone unchanged: {'yes' if same else 'no'}")


if __name__ == "__main__":
    main()
