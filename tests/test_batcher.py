"""When waiting items become a batch: exact decisions on a clock that the test holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.batcher import Batcher


def filled(items: int, now: int = 0, **settings: object) -> Batcher[int]:
    batcher: Batcher[int] = Batcher(**settings)  # type: ignore[arg-type]
    for item in range(items):
        batcher.add(item, now)
    return batcher


def test_nothing_waits_nothing_is_due() -> None:
    """An empty batcher never asks for the engine, and gives an empty batch."""
    batcher = filled(0, max_batch=4)
    assert (batcher.due(10**18), batcher.due_at(), batcher.take(0), len(batcher)) == (False, None, [], 0)


def test_idle_engine_starts_on_what_is_there() -> None:
    """Without a bounded wait one item is due the moment it comes."""
    batcher = filled(1, now=7, max_batch=4)
    assert batcher.due(7)
    assert batcher.take(7) == [0]


def test_sizes_fed_are_sizes_out() -> None:
    """Full batches first, the rest last, in order of arrival."""
    batcher = filled(10, max_batch=4)
    assert [batcher.take(0) for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]


def test_bounded_wait_counts_from_the_first_item() -> None:
    """Company may come until then; a later item does not start the wait anew."""
    batcher: Batcher[str] = Batcher(4, max_wait_ns=100)
    batcher.add("first", 50)
    assert (batcher.due(149), batcher.due(150), batcher.due_at()) == (False, True, 150)
    batcher.add("second", 140)
    assert batcher.due_at() == 150


def test_full_batch_does_not_wait() -> None:
    """Waiting longer could not make it better."""
    batcher = filled(4, now=50, max_batch=4, max_wait_ns=10**9)
    assert batcher.due(50)
    assert len(batcher.take(50)) == 4
    assert not batcher.due(50)


def test_what_is_left_waits_from_its_own_arrival() -> None:
    """The first item of the next batch brings its own clock."""
    batcher: Batcher[int] = Batcher(2, max_wait_ns=100)
    for item, now in enumerate((0, 10, 20)):
        batcher.add(item, now)
    batcher.take(20)
    assert batcher.due_at() == 120


def test_deadline_ends_the_wait_early() -> None:
    """In time for the engine's cost of what waits by then; any item's deadline counts, not only the oldest's."""
    batcher: Batcher[int] = Batcher(8, max_wait_ns=1000, cost=lambda size: 10 * size)
    batcher.add(0, 0)
    assert batcher.due_at() == 1000
    batcher.add(1, 0, deadline=500)
    assert batcher.due_at() == 480
    batcher.add(2, 0)
    assert (batcher.due_at(), batcher.due(469), batcher.due(470)) == (470, False, True)


def test_batch_shrinks_so_that_the_oldest_makes_it() -> None:
    """The largest batch that is done by the oldest item's deadline; the others follow in the next."""
    batcher: Batcher[int] = Batcher(8, cost=lambda size: 10 * size)
    for item in range(8):
        batcher.add(item, 0, deadline=150)
    assert batcher.take(100) == [0, 1, 2, 3, 4]
    assert batcher.take(120) == [5, 6, 7]


def test_batch_is_not_shrunk_for_what_is_too_late_anyway() -> None:
    """Where even alone it would miss its deadline, smaller batches would only make more items late."""
    batcher: Batcher[int] = Batcher(8, cost=lambda size: 10 * size)
    for item in range(8):
        batcher.add(item, 0, deadline=105)
    assert len(batcher.take(100)) == 8


def test_unknown_cost_promises_nothing() -> None:
    """Before the first measurement a batch goes out full."""
    batcher: Batcher[int] = Batcher(8)
    for item in range(8):
        batcher.add(item, 0, deadline=101)
    assert len(batcher.take(100)) == 8


def test_room_is_what_full_batches_still_lack() -> None:
    """Never negative, also when more waits than asked for."""
    assert [filled(n, max_batch=4).room() for n in (0, 3, 8, 11)] == [8, 5, 0, 0]
    assert filled(3, max_batch=4).room(full_batches=1) == 1


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 50), st.one_of(st.just(0), st.integers(1, 400))),
        st.tuples(st.just("take"), st.integers(0, 50), st.just(0)),
    ),
    max_size=60,
)


@given(actions, st.integers(1, 6), st.integers(0, 60), st.integers(0, 40))
def test_nothing_is_lost_doubled_or_overtaken(steps: list, max_batch: int, wait: int, cost: int) -> None:
    """Whatever comes when: every item leaves once, in order, in batches of 1 to max_batch."""
    batcher: Batcher[int] = Batcher(max_batch, wait, lambda size: cost * size)
    now, added, batches = 0, 0, []
    for action, later, deadline in steps:
        now += later
        if action == "add":
            batcher.add(added, now, deadline and now + deadline)
            added += 1
        elif batcher.due(now):
            batches.append(batcher.take(now))
    while len(batcher):
        batches.append(batcher.take(now))
    assert [item for batch in batches for item in batch] == list(range(added))
    assert all(1 <= len(batch) <= max_batch for batch in batches)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 300)), min_size=1, max_size=20), st.integers(1, 6))
def test_work_conserving_without_a_wait(items: list[tuple[int, int]], max_batch: int) -> None:
    """With no bounded wait, something is due as soon as anything waits, until nothing does."""
    batcher: Batcher[int] = Batcher(max_batch, cost=lambda size: 7 * size)
    now = 0
    for later, deadline in items:
        now += later
        batcher.add(0, now, deadline)
        assert batcher.due(now)
    while len(batcher):
        assert batcher.due(now)
        batcher.take(now)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 300)), min_size=1, max_size=20), st.integers(0, 200))
def test_no_item_waits_longer_than_allowed(items: list[tuple[int, int]], wait: int) -> None:
    """The oldest is due at the latest max_wait after it came, whatever came after it."""
    batcher: Batcher[int] = Batcher(4, wait)
    now = 0
    for later, deadline in items:
        now += later
        batcher.add(0, now, deadline and now + deadline)
    assert batcher.due_at() is not None
    assert batcher.due(items[0][0] + wait)


def test_batch_shrinks_for_the_most_urgent_item_in_it() -> None:
    """Not only the oldest counts: sources have budgets of their own."""
    batcher: Batcher[int] = Batcher(8, cost=lambda size: 10 * size)
    for item, deadline in enumerate((1000, 1000, 130, 1000)):
        batcher.add(item, 0, deadline)
    assert batcher.take(100) == [0, 1, 2]


def test_time_for_what_follows_is_kept_free() -> None:
    """`spare` closes and shrinks a batch earlier, but makes no item hopeless: it may not need what follows."""
    batcher: Batcher[int] = Batcher(8, max_wait_ns=1000, cost=lambda size: 10 * size)
    for item in range(4):
        batcher.add(item, 0, deadline=200, spare=60)
    assert batcher.due_at() == 100
    assert batcher.take(115) == [0, 1]
    assert batcher.hopeless(180) == []
    assert batcher.hopeless(185) == [3]
    assert batcher.hopeless(191) == [2]


def test_hopeless_items_are_taken_out_and_no_others() -> None:
    """What could not make it in its turn; items without a deadline never."""
    batcher: Batcher[int] = Batcher(4, cost=lambda size: 10 * size)
    for item, deadline in enumerate((0, 105, 300, 109, 110)):
        batcher.add(item, 0, deadline)
    assert batcher.hopeless(100) == [1, 3, 4]
    assert batcher.take(100) == [0, 2]
    assert batcher.hopeless(10**9) == []


def test_item_is_hopeless_in_its_turn() -> None:
    """What stands before it counts, as far as that will be done itself; several batches are in flight at once."""
    batcher: Batcher[int] = Batcher(2, cost=lambda size: 10 * size)
    for item, deadline in enumerate((25, 5, 25, 35, 35, 60)):
        batcher.add(item, 0, deadline)
    assert batcher.hopeless(0) == [1, 4], "20 for the first two, 30 for three, 40 for four"
    assert batcher.take(0) == [0, 2]
    for item in (6, 7, 8):
        batcher.add(item, 0, deadline=25)
    assert batcher.hopeless(0, in_flight=2) == [7, 8], "of the batch ahead half counts: 20 alone, 30 with company"


def test_items_that_belong_together_are_hopeless_together() -> None:
    """Half of it would be inspected in vain; those behind it have its time."""
    batcher: Batcher[str] = Batcher(2, cost=lambda size: 10 * size)
    for item in ("a1", "a2", "a3", "b1", "b2"):
        batcher.add(item, 0, deadline=25)
    groups = {"a": object(), "b": object()}
    assert batcher.hopeless(0, together=lambda item: groups[item[0]]) == ["a1", "a2", "a3"]
    assert batcher.take(0) == ["b1", "b2"]


def test_removed_items_leave_no_trace() -> None:
    """Neither in the batches nor in the deadlines."""
    batcher: Batcher[int] = Batcher(4, max_wait_ns=50)
    for item in range(3):
        batcher.add(item, 0, deadline=20 if item == 1 else 0)
    assert batcher.remove(lambda item: item == 1) == [1]
    assert (batcher.due_at(), batcher.take(0)) == (50, [0, 2])
