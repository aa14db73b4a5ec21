"""Reads a msgpack map that somebody else wrote, without taking more memory than was agreed; knows no meaning.

msgpack lets a few bytes ask for much: an empty map is one byte on the wire and 64 in memory, a list states its
length before its values, a key may stand twice with two values. https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Any

import msgpack

LONGEST = 65_536  # values in one list or map; room for them is made before they are read


class _Counter:
    """Makes lists and maps of what was read, as long as all of them together hold no more than `left` values."""

    def __init__(self, left: int) -> None:
        self._left = left

    def as_list(self, values: list[Any]) -> list[Any]:
        self._left -= len(values)
        if self._left < 0:
            raise ValueError("it holds too many values")
        return values

    def as_map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        facts = dict(self.as_list(pairs))
        if len(facts) < len(pairs):
            raise ValueError("a key stands twice")
        return facts


def unpack_map(data: bytes, values: int) -> dict[str, Any]:
    """The map with text keys that these bytes are, of at most `values` values in all; ValueError for anything else."""
    counter, longest = _Counter(values), min(values, LONGEST)
    bounds = {"max_array_len": longest, "max_map_len": longest, "max_ext_len": 0}
    try:
        facts = msgpack.unpackb(data, list_hook=counter.as_list, object_pairs_hook=counter.as_map, **bounds)
    except Exception as error:  # msgpack raises a family of unrelated types on foreign bytes
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
        raise ValueError("it is no map with text keys")
    return facts
