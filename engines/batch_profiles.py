"""Batch sizes a compiled network is made for, and which of them a batch is padded to; pure.

One profile for a single tile, which a network can be tuned to on its own, and one for all larger batches, tuned to the
largest. Within it a few sizes are prepared (a CUDA graph each), so that few are padded by much.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Least, preferred and greatest batch size of one optimisation profile."""

    least: int
    best: int
    most: int


def profiles(max_batch: int) -> tuple[Profile, ...]:
    """
    >>> profiles(8)
    (Profile(least=1, best=1, most=1), Profile(least=2, best=8, most=8))
    """
    single = Profile(1, 1, 1)
    return (single,) if max_batch == 1 else (single, Profile(2, max_batch, max_batch))


def prepared_sizes(max_batch: int) -> tuple[int, ...]:
    """Powers of two and the halves between them, up to the largest.

    >>> prepared_sizes(16)
    (1, 2, 3, 4, 6, 8, 12, 16)
    """
    powers = [1 << k for k in range(max_batch.bit_length())]
    return tuple(
        sorted({size for power in powers for size in (power, power * 3 // 2) if size < max_batch} | {max_batch})
    )


def size_for(rows: int, sizes: tuple[int, ...]) -> int:
    """The smallest prepared size that takes so many rows."""
    return next(size for size in sizes if size >= rows)


def profile_for(size: int, of: tuple[Profile, ...]) -> int:
    """Which profile a size belongs to."""
    return next(number for number, each in enumerate(of) if each.least <= size <= each.most)
