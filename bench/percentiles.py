"""What many measured times say together; knows neither where they come from nor how they are shown.

Percentiles are interpolated linearly between the two nearest samples (numpy's default). One is given only
where at least one sample is expected beyond it: p99.9 of 200 samples would be their maximum under another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# name → (per cent, samples from which it is given)
PERCENTILES = {"p50": (50.0, 1), "p90": (90.0, 10), "p99": (99.0, 100), "p99_9": (99.9, 1000)}


@dataclass(frozen=True)
class Spread:
    """Count, mean, percentiles and maximum of samples, in their own unit; None: too few samples to say."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to a thousandth of the unit."""
        return {name: round(v, 3) if isinstance(v, float) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Spread:
        return cls(**table)


def spread(values: npt.ArrayLike) -> Spread:
    """Of samples in any one unit; of none, everything but the count is None."""
    samples = np.asarray(values, dtype=np.float64)
    if not samples.size:
        return Spread(0)
    given = {name: share for name, (share, needed) in PERCENTILES.items() if samples.size >= needed}
    found = np.percentile(samples, list(given.values()))
    named = {name: float(value) for name, value in zip(given, found, strict=True)}
    return Spread(int(samples.size), float(samples.mean()), max=float(samples.max()), **named)
