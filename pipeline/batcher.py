"""When waiting items become a batch: pure decisions; the clock is a parameter, nothing here does I/O.

Work-conserving: whoever has a free engine slot asks `due`, and what waits is due at once, unless the recipe
allows a bounded wait for company. A deadline closes a batch early, and makes it smaller when the engine's
measured cost says that a larger one would come too late for its oldest item.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Cost = Callable[[int], int]  # batch size → expected ns in the engine


def no_cost(size: int) -> int:
    """An engine whose cost is not known yet: promises nothing, never closes early."""
    return 0


@dataclass
class Batcher(Generic[Item]):
    """Items in order of arrival. `max_wait_ns` is counted from the first item of a batch."""

    max_batch: int
    max_wait_ns: int = 0
    cost: Cost = no_cost
    _waiting: deque[tuple[Item, int, int]] = field(default_factory=deque)  # item, arrived, deadline (0: none)

    def __len__(self) -> int:
        return len(self._waiting)

    def room(self, full_batches: int = 2) -> int:
        """How many more items make that many full batches wait."""
        return max(0, full_batches * self.max_batch - len(self._waiting))

    def add(self, item: Item, now: int, deadline: int = 0) -> None:
        self._waiting.append((item, now, deadline))

    def due(self, now: int) -> bool:
        """Should a free engine start now?"""
        at = self.due_at()
        return at is not None and at <= now

    def due_at(self) -> int | None:
        """From when on a free engine should start (ns); None while nothing waits."""
        if not self._waiting:
            return None
        _, first, _ = self._waiting[0]
        if len(self._waiting) >= self.max_batch:
            return first
        latest_start = [deadline - self.cost(len(self._waiting)) for _, _, deadline in self._waiting if deadline]
        return min([first + self.max_wait_ns, *latest_start])

    def take(self, now: int) -> list[Item]:
        """The next batch, oldest first; at most `max_batch`, fewer when the oldest could not make it otherwise."""
        size = min(len(self._waiting), self.max_batch)
        deadline = self._waiting[0][2] if size else 0
        while size > 1 and deadline and now + self.cost(size) > deadline >= now + self.cost(1):
            size -= 1
        return [self._waiting.popleft()[0] for _ in range(size)]
