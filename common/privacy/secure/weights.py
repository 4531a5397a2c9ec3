"""A site's own weight in a secure sum: a function of its own numbers alone, so that it can be masked like the rest.

    w_k = (n_k / examples)**a * exp(-max(0, L_k - loss) / temperature)**b,  at most 1

with n_k the number of training examples, L_k the metric `update.loss`, `a` and `b` the exponents of the factors `size`
and `loss`, and the references `examples` and `loss` of the round's plan, which cancel in the mean. `examples` is the
largest number among the sites asked; `loss` lies below the losses of the round before, so that no weight is cut at 1.
A strategy that takes no weights gives each site 1. The server does not choose a site's weight: it could give one site
all of it, and see that site's update.

Where a strategy takes the mean of updates per step (FedNova), each site multiplies what gradients move by
`steps / a_k`, at most 1, with a_k the metric `train.effective_steps` and the reference `steps` no more than the fewest
steps of any site. The server divides the mean by the sum of `p_k steps / a_k`, p_k the shares, which sites tell it.
"""

import math
from collections.abc import Mapping

from consilium.common.errors import UpdateRejected
from consilium.common.study.signals import EFFECTIVE_STEPS, UPDATE_LOSS
from consilium.common.study.strategies import StrategySettings
from consilium.common.study.training import TrainingConfig
from consilium.common.study.weightings import LossFactor, SizeFactor, WeightingConfig

ROOM = 3.0
"""How many temperatures the loss may fall below the least one of the round before until weights are cut at 1."""


def own_weight(
    weights_by: WeightingConfig,
    strategy: StrategySettings,
    num_examples: int,
    metrics: Mapping[str, float],
    *,
    examples: int,
    loss: float,
) -> float:
    """Return a site's weight in [0, 1].

    Args:
        examples, loss: the references of the round.

    Raises:
        UpdateRejected: a measurement is missing.
    """
    weight = 1.0
    for factor in weights_by.factors if strategy.weighted else ():
        match factor:
            case SizeFactor():
                weight *= min(1.0, num_examples / examples) ** factor.exponent
            case LossFactor():
                if (own := metrics.get(UPDATE_LOSS)) is None:
                    raise UpdateRejected("metrics", f"'{UPDATE_LOSS}' was not measured, which the weighting needs")
                weight *= math.exp(-max(0.0, own - loss) / factor.temperature * factor.exponent)
            case _:
                raise UpdateRejected("metrics", f"weighting '{factor.kind}' cannot be part of a secure sum")
    return weight


def reference_loss(weights_by: WeightingConfig, least: float | None) -> float:
    """Return the reference for losses.

    Args:
        least: loss of the sites in the round before; None where there was none.
    """
    temperatures = [factor.temperature for factor in weights_by.factors if isinstance(factor, LossFactor)]
    return max(0.0, least - ROOM * max(temperatures)) if least is not None and temperatures else 0.0


def per_step(metrics: Mapping[str, float], steps: float) -> float:
    """Return what a site multiplies its update by where updates are divided by steps: in (0, 1].

    Args:
        steps: the reference of the round.

    Raises:
        UpdateRejected: its steps were not counted.
    """
    own = metrics.get(EFFECTIVE_STEPS)
    if own is None or not own > 0:
        raise UpdateRejected("metrics", f"'{EFFECTIVE_STEPS}' was not measured, which the strategy needs")
    return min(1.0, steps / own)


def reference_steps(training: TrainingConfig, examples: int) -> float:
    """Return a number of steps that every site takes, or more of them: each batch's gradient counts once at least.

    Args:
        examples: the fewest training examples of any site of the round.
    """
    if training.steps is not None:
        return float(training.steps)
    assert training.epochs is not None
    return float(training.epochs * max(1, examples // training.batch_size))
