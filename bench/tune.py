"""How many streams and threads the cpu engine is best run with: measured, never guessed.

`in_flight` is the number of OpenVINO's streams and of requests at a time, `threads` what they share. Settings take
turns, and of those that are as fast as the fastest, within what turns differ by, the one with the fewest batches in
flight wins: each of them is a batch of frames that waits.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.engine_alone import kept_busy, rate_of
from engines.base import Engine, Kind, Pixels
from pipeline.opening import open_engines
from pipeline.recipe import Recipe

ALIKE = 0.03  # share of speed that is not worth a batch in flight
Tell = Callable[[str], None]


@dataclass(frozen=True, order=True)
class Setting:
    """What is tried."""

    in_flight: int
    threads: int


def settings_for(cores: int) -> list[Setting]:
    """One to four streams, on every core and on all but one, which leaves one to the line's other threads."""
    threads = sorted({cores, max(1, cores - 1)})
    return [Setting(in_flight, each) for in_flight in (1, 2, 4) if in_flight <= 2 * cores for each in threads]


def chosen(rates: Mapping[Setting, Sequence[float]]) -> Setting:
    """The fastest, or one as fast with fewer batches in flight, then with fewer threads.

    >>> chosen({Setting(1, 2): [99.0], Setting(2, 2): [100.0], Setting(4, 2): [80.0]})
    Setting(in_flight=1, threads=2)
    """
    medians = {setting: statistics.median(found) for setting, found in rates.items()}
    best = max(medians.values())
    return min(setting for setting, rate in medians.items() if rate >= (1 - ALIKE) * best)


def tune(
    recipe: Recipe,
    settings: Sequence[Setting],
    batches: Callable[[Mapping[Kind, Engine]], Sequence[Pixels]],
    rounds: int,
    seconds: float,
    tell: Tell,
) -> dict[Setting, list[float]]:
    """Tiles a second through every stage, one after the other, of each setting in each round."""
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for number in range(rounds):
        for setting in settings if number % 2 == 0 else reversed(settings):
            tell(f"round {number + 1}: {setting.in_flight} in flight, {setting.threads} threads")
            batching = replace(recipe.batching, in_flight=setting.in_flight, threads=setting.threads)
            with open_engines(replace(recipe, batching=batching), unpromoted=True) as engines:
                rates[setting].append(_rate(engines, batches(engines), seconds))
    return rates


def _rate(engines: Mapping[Kind, Engine], batches: Sequence[Pixels], seconds: float) -> float:
    """Of a tile that goes through all stages."""
    each_ns, size = int(seconds * 1e9 / len(engines)), len(batches[0])
    took = 0.0
    for engine in engines.values():
        finished = kept_busy(engine, itertools.cycle(batches), each_ns, time.monotonic_ns)
        took += 1 / (size * rate_of(finished))
    return 1 / took
