"""Which things hang together when some of them do in pairs or sets; it does not know what they are."""

from __future__ import annotations

from collections.abc import Iterable


def first_of_each(sets: Iterable[Iterable[str]]) -> dict[str, str]:
    """For every name in the sets, the first name in sorted order that it hangs together with, over any number of sets.

    >>> first_of_each([["d", "c"], ["b", "c"], ["e"]])
    {'d': 'b', 'c': 'b', 'b': 'b', 'e': 'e'}
    """
    parent: dict[str, str] = {}
    for names in sets:
        roots = {_root(parent, name) for name in names}
        for root in roots:
            parent[root] = min(roots)
    return {name: _root(parent, name) for name in parent}


def _root(parent: dict[str, str], name: str) -> str:
    parent.setdefault(name, name)
    while parent[name] != name:
        parent[name] = parent[parent[name]]  # halves the way for the next one who asks
        name = parent[name]
    return name
