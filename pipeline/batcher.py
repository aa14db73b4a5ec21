"""When waiting items become a batch: pure decisions; the clock is a parameter, nothing here does I/O.

Work-conserving: whoever has a free engine slot asks `due`, and what waits is due at once, unless the recipe
allows a bounded wait for company. A deadline closes a batch early, and makes it smaller when the engine's
measured cost says that a larger one would come too late for an item that can still make it.
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


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    item: Item
    arrived: int
    deadline: int  # 0: none
    spare: int  # what should be left of the deadline when the batch is done

    @property
    def target(self) -> int:
        return self.deadline - self.spare


@dataclass
class Batcher(Generic[Item]):
    """Items in order of arrival. `max_wait_ns` is counted from the first item of a batch."""

    max_batch: int
    max_wait_ns: int = 0
    cost: Cost = no_cost
    _waiting: deque[_Waiting[Item]] = field(default_factory=deque)
    _dated: int = 0  # of those, with a deadline

    def __len__(self) -> int:
        return len(self._waiting)

    def room(self, full_batches: int = 2) -> int:
        """How many more items make that many full batches wait."""
        return max(0, full_batches * self.max_batch - len(self._waiting))

    def add(self, item: Item, now: int, deadline: int = 0, spare: int = 0) -> None:
        """`spare`: ns that what follows will take; kept free before the deadline as far as it can be."""
        self._waiting.append(_Waiting(item, now, deadline, spare))
        self._dated += bool(deadline)

    def remove(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Take out what need not be done any more."""
        return self._take_out(lambda waiting: gone(waiting.item)) if self._waiting else []

    def hopeless(
        self, now: int, in_flight: int = 1, together: Callable[[Item], object] = lambda item: None
    ) -> list[Item]:
        """Take out what cannot make its deadline in its turn, so that what comes after it still can.

        Items that follow each other and belong `together` (not None) are useful only all of them.
        """
        if not self._dated:
            return []
        out: set[int] = set()
        kept = start = 0
        waiting = list(self._waiting)
        for end in range(1, len(waiting) + 1):
            whole = together(waiting[start].item)
            if end < len(waiting) and whole is not None and together(waiting[end].item) is whole:
                continue
            deadlines = [each.deadline for each in waiting[start:end] if each.deadline]
            if deadlines and now + self._until(kept + end - start, in_flight) > min(deadlines):
                out.update(range(start, end))
            else:
                kept += end - start
            start = end
        numbers = iter(range(len(waiting)))
        return self._take_out(lambda _: next(numbers) in out) if out else []

    def _until(self, items: int, in_flight: int) -> int:
        """How long until so many are done: full batches, several in flight, then the last one."""
        full, rest = divmod(items - 1, self.max_batch)
        return full * self.cost(self.max_batch) // in_flight + self.cost(rest + 1)

    def _take_out(self, gone: Callable[[_Waiting[Item]], bool]) -> list[Item]:
        out: list[_Waiting[Item]] = []
        stay: deque[_Waiting[Item]] = deque()
        for waiting in self._waiting:
            (out if gone(waiting) else stay).append(waiting)
        self._waiting = stay
        self._dated -= sum(bool(waiting.deadline) for waiting in out)
        return [waiting.item for waiting in out]

    def due(self, now: int) -> bool:
        """Should a free engine start now?"""
        at = self.due_at()
        return at is not None and at <= now

    def due_at(self) -> int | None:
        """From when on a free engine should start (ns); None while nothing waits."""
        if not self._waiting:
            return None
        first = self._waiting[0].arrived
        if len(self._waiting) >= self.max_batch or not self.max_wait_ns:
            return first
        if not self._dated:
            return first + self.max_wait_ns
        cost = self.cost(len(self._waiting))
        latest_start = [waiting.target - cost for waiting in self._waiting if waiting.deadline]
        return min([first + self.max_wait_ns, *latest_start])

    def take(self, now: int) -> list[Item]:
        """The next batch, oldest first; at most `max_batch`, fewer when one of them could not make it otherwise."""
        size = min(len(self._waiting), self.max_batch)
        if self._dated and size > 1:
            size = self._in_time(size, now)
        batch = [self._waiting.popleft() for _ in range(size)]
        self._dated -= sum(bool(waiting.deadline) for waiting in batch)
        return [waiting.item for waiting in batch]

    def _in_time(self, size: int, now: int) -> int:
        """The largest batch that spoils no deadline which a smaller one, in this order, would keep."""
        targets = [waiting.target if waiting.deadline else 0 for waiting in list(self._waiting)[:size]]
        done = [now + self.cost(part) for part in range(1, size + 1)]
        while size > 1 and any(done[i] <= targets[i] < done[size - 1] for i in range(size)):
            size -= 1
        return size
