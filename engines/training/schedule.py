"""How long and how fast a network is taught; pure numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM = 0.1  # share of the steps in which the rate rises
TIMED = 8  # steps after which the time a step takes is known


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    steps: int = 1500
    batch: int = 12
    learning_rate: float = 3e-3  # the peak; it rises from nothing and falls along a cosine (arXiv:1608.03983)
    taught_share: float = 0.3  # of that rate, for weights that come already taught
    decay: float = 0.02  # of the weights (AdamW: Loshchilov & Hutter 2017, arXiv:1711.05101)
    average: float = 0.99  # of the weights over steps; what is validated and kept (arXiv:1803.05407); 0: none
    looks: int = 10  # at the validation pictures
    patience: int = 10  # looks without a better score before the end
    minutes: float = 0.0  # fewer steps if they would take longer than this; 0: however long it takes
    seed: int = 1


def rate(progress: float) -> float:
    """Share of the peak learning rate at `progress` 0 … 1: a straight rise, then half a cosine down to nothing.

    >>> [round(rate(x), 3) for x in (0.0, 0.1, 0.55, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if progress < WARM:
        return max(0.01, progress / WARM)
    return (1 + math.cos(math.pi * (progress - WARM) / (1 - WARM))) / 2


def affordable(schedule: Schedule, seconds_a_step: float) -> int:
    """Steps that fit into the schedule's minutes: never more than it has, never fewer than one a look."""
    most = int(schedule.minutes * 60 / seconds_a_step)
    return min(schedule.steps, max(most, schedule.looks, TIMED))
