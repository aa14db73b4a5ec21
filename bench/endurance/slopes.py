"""Does a series of samples go up or down? Pure.

Least squares over time, with a 95 % confidence interval that knows that neighbouring samples resemble one another:
the residuals' lag-1 autocorrelation r leaves n·(1-r)/(1+r) independent samples, and Student's t has two degrees of
freedom less than that (Santer et al. 2000, doi:10.1029/1999JD901105).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEAST = 10  # samples from which anything is said
MIN_INDEPENDENT = 3.0


@dataclass(frozen=True)
class Slope:
    """Change per hour, in the samples' unit, and the ends of its 95 % confidence interval."""

    per_hour: float
    low: float
    high: float
    mean: float  # of the samples
    samples: int
    independent: float  # of them, in effect

    @property
    def percent(self) -> tuple[float, float, float]:
        """The same three in per cent of the mean per hour."""
        scale = 100 / self.mean if self.mean else 0.0
        return self.per_hour * scale, self.low * scale, self.high * scale


def slope_of(seconds: Sequence[float], values: Sequence[float]) -> Slope | None:
    """None for fewer than LEAST samples."""
    if len(values) < LEAST:
        return None
    hours, ys = np.asarray(seconds, float) / 3600, np.asarray(values, float)
    across = hours - hours.mean()
    slope = float(across @ ys / (across @ across))
    residuals = ys - ys.mean() - slope * across
    independent = _independent(residuals)
    variance = float(residuals @ residuals) / (independent - 2) / float(across @ across)
    half = student_t(independent - 2) * variance**0.5
    return Slope(slope, slope - half, slope + half, float(ys.mean()), len(ys), independent)


def _independent(residuals: npt.NDArray[np.float64]) -> float:
    """How many independent samples these are worth; the first ones decide as much as `MIN_INDEPENDENT` allows."""
    power = float(residuals @ residuals)
    r = float(residuals[1:] @ residuals[:-1]) / power if power > 0 else 0.0
    n = len(residuals)
    return float(np.clip(n * (1 - r) / (1 + r), MIN_INDEPENDENT, n))


def student_t(freedom: float, confidence: float = 0.95) -> float:
    """The two-sided quantile; exact for one and two degrees of freedom, else approximate.

    The approximation is the Cornish-Fisher expansion of Abramowitz and Stegun 26.7.5, good to 1 % from three on.
    """
    tail = 1 - confidence
    if freedom < 2:
        return float(1 / np.tan(tail * np.pi / 2))  # of one: Cauchy; too wide for between one and two
    if freedom < 3:
        return float((2 / (tail * (2 - tail)) - 2) ** 0.5)
    z = NormalDist().inv_cdf(1 - tail / 2)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3)
