"""LoRA: two small matrices beside a large one, which stays as it is.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022,
section 4.1, https://arxiv.org/abs/2106.09685:

    h = W0 x + b + (alpha / rank) B A x

with W0 `(outputs, inputs)` and b as they were, A `(rank, inputs)` = `lora_a` and B `(outputs, rank)` = `lora_b`. A is
drawn as a linear layer's matrix is, B is 0, so that the model begins as it was.

A server that averages A and B by themselves does not average their products: mean(B) mean(A) = mean(B A) only where
one of the two is the same at all sites. With `freeze_a` it is: A stays as it was drawn from the study's seed, and
averaging B averages the products exactly (Sun, Li, Li, Ding: Improving LoRA in Privacy-preserving Federated Learning,
ICLR 2024, https://arxiv.org/abs/2403.12313). Without it the server's weights are FedAvg's of the factors.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from consilium.common.errors import ModelError, clean, listed
from consilium.common.study.adapter import LoraConfig

A, B = "lora_a", "lora_b"
"""The last part of the small matrices' names."""
_MOST_NAMED = 12


class Lora(nn.Module):
    """A linear layer with two small matrices beside it; the layer itself is `base`.

    Args:
        base: `nn.Linear`, or GPT-2's Conv1D, whose matrix is `(inputs, outputs)`.
    """

    def __init__(self, base: nn.Module, config: LoraConfig) -> None:
        super().__init__()
        inputs, outputs = sizes(base)
        if config.rank > min(inputs, outputs):
            raise ModelError(
                f"model.adapter.rank: a layer of {inputs} x {outputs} takes at most {min(inputs, outputs)}"
            )
        self.base, self._factor = base, config.alpha / config.rank
        self.lora_a = nn.Parameter(torch.empty(config.rank, inputs))
        self.lora_b = nn.Parameter(torch.zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's answer and the change `(..., outputs)`."""
        whole: Tensor = self.base(inputs)
        return whole + (inputs @ self.lora_a.t() @ self.lora_b.t()) * self._factor


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Return the numbers of inputs and of outputs of a layer that takes an adapter; (0, 0) of another one."""
    if type(layer) is nn.Linear:
        return layer.in_features, layer.out_features
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return int(weight.shape[0]), int(weight.shape[1])
    return 0, 0


def with_adapters(module: nn.Module, head: frozenset[str], config: LoraConfig, *, name: str, seed: int) -> None:
    """Put adapters beside a model's linear layers, in place; their old names get `base.` before the last part.

    Args:
        head: the state_dict names of the head, which takes none.
        name: the model's, for sentences.
        seed: of the random matrices.

    Raises:
        ModelError: no linear layer of the backbone is called as `config.targets` say, or one is too small.
    """
    known = [path for path, layer in module.named_modules() if sizes(layer)[0] and f"{path}.weight" not in head]
    chosen = [path for path in known if not config.targets or any(_ends(path, one) for one in config.targets)]
    unused = [one for one in config.targets if not any(_ends(path, one) for path in known)]
    if unused or not chosen:
        which = f"is called '{clean(unused[0])}'" if unused else "is there"
        last = sorted({path.rpartition(".")[2] for path in known})
        names = f", known: {listed(last, _MOST_NAMED)}" if last else ""
        raise ModelError(f"model.adapter: no linear layer of model '{clean(name, 100)}' {which}{names}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for path in chosen:
            parent, _, last = path.rpartition(".")
            module.get_submodule(parent).add_module(last, Lora(module.get_submodule(path), config))


def trained_of(module: nn.Module, config: LoraConfig) -> Iterator[str]:
    """Yield the names of the adapters' matrices that are trained."""
    ends = (B,) if config.freeze_a else (A, B)
    for name, _ in module.named_parameters():
        if name.rpartition(".")[2] in ends:
            yield name


def _ends(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")
