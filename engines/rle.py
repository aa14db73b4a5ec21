"""Run-length codes of binary masks: ours is column-major with 1-indexed starts, as Kaggle's text form.

A code is a flat uint32 array `[start, length, start, length, …]`, starts strictly growing. Column-major
means that the pixel index runs down the first column, then down the second (numpy order "F").
COCO's uncompressed counts are the alternating run lengths of 0s and 1s in the same pixel order, the zeros
first (pycocotools, `mask.py`); its compressed string packs them into text. Other code in this field mixes
0-indexed and row-major forms; nothing here converts silently.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

MOST_BITS = 40  # of a number in COCO's string: counts of pixels stay far below


def encode(mask: npt.NDArray[np.generic]) -> Runs:
    """Runs of the non-zero pixels of a mask [H, W]."""
    flat = np.asarray(mask != 0).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[0::2], edges[1::2]
    return np.stack([starts + 1, ends - starts], axis=1).astype(np.uint32).ravel()


def decode(runs: Sequence[int] | Runs, shape: tuple[int, int]) -> Mask:
    """Boolean mask [H, W] of these runs. Raises ValueError when they do not fit into the shape."""
    pairs = check(runs, shape[0] * shape[1])
    steps = np.zeros(shape[0] * shape[1] + 1, dtype=np.int8)
    steps[pairs[:, 0] - 1] += 1
    np.add.at(steps, pairs[:, 0] - 1 + pairs[:, 1], -1)
    return steps.cumsum(dtype=np.int8)[:-1].astype(bool).reshape(shape, order="F")


def check(runs: Sequence[int] | Runs, pixels: int) -> npt.NDArray[np.int64]:
    """These runs as pairs [N, 2] of start and length. ValueError when they do not fit."""
    flat = np.asarray(runs, dtype=np.int64)
    if flat.size % 2:
        raise ValueError("run-length code has an odd number of values: start without length")
    pairs = flat.reshape(-1, 2)
    possible = not np.any((pairs < 1) | (pairs > pixels))  # before any sum, which could overflow
    ends = pairs[:, 0] + pairs[:, 1]
    if pairs.size and not (possible and ends[-1] <= pixels + 1 and np.all(pairs[1:, 0] >= ends[:-1])):
        raise ValueError(f"run-length code leaves the image of {pixels} px, or its runs overlap")
    return pairs


def to_text(runs: Runs) -> str:
    """Kaggle's text form: `start length start length …`, empty for an empty mask."""
    return " ".join(map(str, runs.tolist()))


def from_text(text: str) -> Runs:
    """Runs of Kaggle's text form; ValueError when it holds anything but whole numbers from 1."""
    numbers = [int(word) for word in text.split()]
    if not all(0 < number < 1 << 32 for number in numbers):
        raise ValueError("run-length code holds a number outside 1…2³²-1")
    return np.array(numbers, dtype=np.uint32)


def to_counts(runs: Runs, shape: tuple[int, int]) -> list[int]:
    """COCO's uncompressed counts: zeros, ones, zeros, … until the image is full."""
    pairs = check(runs, shape[0] * shape[1])
    counts, position = [], 0
    for start, length in pairs.tolist():
        counts += [start - 1 - position, length]
        position = start - 1 + length
    rest = shape[0] * shape[1] - position
    return [*counts, rest] if rest or not counts else counts


def from_counts(counts: Sequence[int]) -> Runs:
    """Runs of COCO's uncompressed counts; ValueError when one is negative."""
    if min(counts, default=0) < 0:
        raise ValueError("COCO counts hold a negative number")
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    starts, lengths = ends[0::2][: len(counts) // 2], np.asarray(counts, dtype=np.int64)[1::2]
    keep = lengths > 0
    return np.stack([starts + 1, lengths], axis=1)[keep].astype(np.uint32).ravel()


def counts_to_text(counts: Sequence[int]) -> str:
    """COCO's compressed string (pycocotools, `rleToString`).

    From the fourth on a count is written as its difference to the last but one. Each number goes out in groups of
    5 bits, the lowest first, as a character from "0" on: bit 0x20 says that more follow, bit 0x10 of the last group
    is the sign.
    """
    text = []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, rest = rest & 0x1F, rest >> 5
            more = rest != (-1 if group & 0x10 else 0)
            text.append(chr(group + (0x20 if more else 0) + 48))
    return "".join(text)


def counts_from_text(text: str | bytes) -> list[int]:
    """Counts of COCO's compressed string; ValueError when it is cut off, holds another character or a negative count.

    No sum is checked: only the picture's size says whether the counts fill it.
    """
    groups = [ord(mark) - 48 for mark in (text.decode("latin-1") if isinstance(text, bytes) else text)]
    if not all(0 <= group < 64 for group in groups) or (groups and groups[-1] & 0x20):
        raise ValueError("COCO string is cut off, or holds a character that is none of its code")
    counts: list[int] = []
    value = bits = 0
    for group in groups:
        value |= (group & 0x1F) << bits
        bits += 5
        if bits > MOST_BITS:
            raise ValueError("COCO string holds a number without end")
        if not group & 0x20:
            value -= (group & 0x10) << (bits - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    if min(counts, default=0) < 0:
        raise ValueError("COCO counts hold a negative number")
    return counts
