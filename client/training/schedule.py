"""The learning rate as a function of the round, or of the step among all rounds' steps, of a study's schedule.

With t rounds done of T (the study's, or the schedule's own), whole or with the part of this round's steps that is done,
W of them to warm up, and the study's rate r, the rate is r f(t):

    t < W            f = warmup_start + (1 - warmup_start) t / W
    cosine           f = least + (1 - least) (1 + cos(pi (t - W) / (T - W))) / 2
    linear           f = 1 - (1 - least) (t - W) / (T - W)
    step             f = factor ** floor((t - W) / every)
    exponential      f = factor ** (t - W)
    linear_warmup    f = 1

Cosine: Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, without restarts,
https://arxiv.org/abs/1608.03983. Warm-up: Goyal et al.: Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour,
2017, https://arxiv.org/abs/1706.02677. All are those of `torch.optim.lr_scheduler`.
"""

import math
from dataclasses import dataclass

from consilium.common.study.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    ScheduleConfig,
    StepSchedule,
    WarmupSchedule,
)


def factor(schedule: ScheduleConfig, *, done: int, rounds: int, steps: int = 1) -> float:
    """Return what the study's learning rate is multiplied by, > 0.

    Args:
        done: steps before this one, of all rounds together, >= 0; later ones than there are count as the last.
        rounds: of the study, >= 1; those of the schedule where it has its own.
        steps: in a round, >= 1; 1 where the rate changes between rounds only.
    """
    warm, total = schedule.warmup * steps, (schedule.rounds or rounds) * steps
    at = min(done, total - 1)
    if at < warm:
        return schedule.warmup_start + (1 - schedule.warmup_start) * at / warm
    after, length = at - warm, total - warm
    match schedule:
        case CosineSchedule():
            return schedule.least + (1 - schedule.least) * (1 + math.cos(math.pi * after / length)) / 2
        case LinearSchedule():
            return 1 - (1 - schedule.least) * after / length
        case StepSchedule():
            return float(schedule.factor ** (after // (schedule.every * steps)))
        case ExponentialSchedule():
            return float(schedule.factor ** (after / steps))
        case WarmupSchedule():
            return 1.0


@dataclass(frozen=True)
class RateOfSteps:
    """A schedule by which the rate changes with every step of a round.

    Args:
        round: from 1.
        rounds: of the study.
    """

    schedule: ScheduleConfig
    round: int
    rounds: int

    def at(self, step: int, *, steps: int) -> float:
        """Return the factor of a step of this round, from 0, of so many that it has."""
        before = (min(self.round, self.rounds) - 1) * steps
        return factor(self.schedule, done=before + step, rounds=self.rounds, steps=steps)


def of_round(schedule: ScheduleConfig | None, number: int, rounds: int) -> tuple[float, RateOfSteps | None]:
    """Return the factor that holds in a whole round, and what changes the rate in it; 1 and None: nothing does.

    Args:
        number: of the round, from 1; a later one than the study has counts as its last.
    """
    if schedule is None:
        return 1.0, None
    if schedule.by == "step":
        return 1.0, RateOfSteps(schedule, number, rounds)
    return factor(schedule, done=number - 1, rounds=rounds), None
