"""The fair queue under any order of arrivals, and the slots under any cancellations."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.admission.fair_queue import FairQueue, Path, Ticket
from session_service.admission.limiter import DatabaseSlot, FairSlots, Limiter, Limits
from session_service.errors import ProviderRateLimited, ProviderUnavailable, StorageUnavailable

if TYPE_CHECKING:
    from session_service.domain.session import Session
    from session_service.transition.ownership import Owned

FLAT = st.tuples(st.sampled_from("abcdef"))
DEEP = st.tuples(st.sampled_from("xyz"), st.sampled_from("pq"), st.sampled_from("abc"))
STEPS = st.sampled_from(["put", "put", "take", "leave"])


@dataclass
class Waiting:
    """An item that was put and not yet taken. `turns`: items of other lanes taken meanwhile."""

    ticket: Ticket
    ahead: int
    turns: int = 0


@dataclass
class Run:
    """A queue, and a model of its expected contents."""

    queue: FairQueue[int] = field(default_factory=FairQueue)
    lanes: dict[Path, list[int]] = field(default_factory=lambda: defaultdict(list))
    items: dict[int, Waiting] = field(default_factory=dict)
    put: int = 0
    ended: set[int] = field(default_factory=set)

    def step(self, what: str, path: Path, pick: int) -> int | None:
        """Put, leave or take; return the item that was taken, if any."""
        if what == "put":
            self.put += 1
            ticket = self.queue.put(path, self.put)
            self.items[self.put] = Waiting(ticket, len(self.lanes[path]))
            self.lanes[path].append(self.put)
        elif what == "leave" and self.items:
            item = sorted(self.items)[pick % len(self.items)]
            waiting = self.items[item]
            assert self.queue.leave(waiting.ticket)
            assert not self.queue.leave(waiting.ticket)
            self._end(item)
        elif what == "take":
            return self._take()
        return None

    def _take(self) -> int | None:
        item = self.queue.take()
        if item is None:
            assert not self.items
            return None
        lane = self.lanes[self.items[item].ticket.path]
        assert lane[0] == item, "first in, first out within a lane"
        for other in self.items.values():
            other.turns += 1
        return item

    def taken(self, item: int) -> Waiting:
        """Account for the item that was taken."""
        waiting = self.items[item]
        self._end(item)
        return waiting

    def _end(self, item: int) -> None:
        assert item not in self.ended
        self.ended.add(item)
        self.lanes[self.items.pop(item).ticket.path].remove(item)

    def check(self) -> None:
        """The invariants of the queue."""
        assert len(self.queue) == len(self.items) == self.queue.waiting(())
        for path, lane in self.lanes.items():
            assert self.queue.waiting(path) == len(lane)


@given(st.lists(st.tuples(STEPS, FLAT, st.integers(0, 50)), max_size=150))
def test_no_lane_waits_more_turns_than_there_are_lanes(
    steps: list[tuple[str, Path, int]],
) -> None:
    """Counted for each of its own items, under any order of arrivals and departures."""
    run, lanes = Run(), len({path for _, path, _ in steps})
    for what, path, pick in [*steps, *[("take", ("a",), 0)] * 151]:
        item = run.step(what, path, pick)
        if item is not None:
            waiting = run.taken(item)
            assert waiting.turns <= (waiting.ahead + 1) * lanes
        run.check()
    assert run.ended == set(range(1, run.put + 1)), "none is lost"


@given(st.lists(st.tuples(STEPS, DEEP, st.integers(0, 50)), max_size=150))
def test_lanes_within_lanes_are_as_fair(steps: list[tuple[str, Path, int]]) -> None:
    """By tenant, project, user: the bound is the product of the numbers of lanes per level."""
    run = Run()
    paths = {path for _, path, _ in steps}
    for what, path, pick in [*steps, *[("take", ("x", "p", "a"), 0)] * 151]:
        item = run.step(what, path, pick)
        if item is not None:
            waiting = run.taken(item)
            tenant, project, _ = waiting.ticket.path
            bound = (
                len({p[0] for p in paths})
                * len({p[1] for p in paths if p[0] == tenant})
                * len({p[2] for p in paths if p[:2] == (tenant, project)})
            )
            assert waiting.turns <= (waiting.ahead + 1) * bound
        run.check()
    assert run.ended == set(range(1, run.put + 1)), "none is lost"


def test_a_storm_of_one_user_costs_another_one_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for n in range(1000):
        queue.put(("default", "nest", "storm"), f"storm {n}")
    queue.put(("default", "nest", "wren"), "wren")
    queue.put(("default", "field", "lark"), "lark")
    queue.put(("other", "nest", "crow"), "crow")
    first = [queue.take() for _ in range(6)]
    assert first == ["storm 0", "crow", "lark", "wren", "storm 1", "storm 2"]


@given(st.lists(DEEP, max_size=60), DEEP)
def test_a_lane_that_is_passed_over_keeps_its_turn(arrivals: list[Path], spared: Path) -> None:
    """All other lanes are taken first, each in its order; then the spared lane is taken."""
    queue: FairQueue[tuple[Path, int]] = FairQueue()
    arrived = [(path, number) for number, path in enumerate(arrivals)]
    for path, number in arrived:
        queue.put(path, (path, number))
    taken = []
    while (item := queue.take(but_not=spared)) is not None:
        taken.append(item)
    for path in set(arrivals) - {spared}:
        assert [i for i in taken if i[0] == path] == [i for i in arrived if i[0] == path]
    mine = [i for i in arrived if i[0] == spared]
    assert len(taken) == len(arrived) - len(mine)
    assert [queue.take() for _ in mine] == mine
    assert queue.take() is None


def test_a_full_queue_has_room_for_a_lane_that_did_not_fill_it() -> None:
    queue: FairQueue[int] = FairQueue()
    storm, wren = ("default", "nest", "storm"), ("default", "nest", "wren")
    while queue.has_room(storm, 10):
        queue.put(storm, 0)
    assert len(queue) == 10
    for _ in range(5):
        assert queue.has_room(wren, 10)
        queue.put(wren, 0)
    assert not queue.has_room(wren, 10)
    assert queue.has_room(("other", "nest", "crow"), 10)


@given(st.lists(DEEP, max_size=200), st.integers(1, 20))
def test_the_queue_is_bounded_under_any_arrivals(arrivals: list[Path], length: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for path in arrivals:
        if queue.has_room(path, length):
            queue.put(path, 0)
        assert len(queue) <= 2 * length
    if len(arrivals) >= length:
        assert len(queue) >= length


# --- slots -------------------------------------------------------------------------------------

WORKERS = st.lists(
    st.tuples(
        FLAT,
        st.integers(0, 5),  # yields before it enters
        st.integers(0, 5),  # yields while it holds the slot
        st.one_of(st.none(), st.integers(0, 12)),  # yields before it is cancelled
        st.booleans(),  # fails while it holds the slot
    ),
    max_size=25,
)


@given(WORKERS, st.integers(1, 3))
def test_slots_are_never_overbooked_nor_lost(
    workers: list[tuple[Path, int, int, int | None, bool]], slots: int
) -> None:
    """Workers are cancelled at any moment: each other one runs once, and all slots end up free."""

    async def run() -> None:
        tested, at_work, done = FairSlots("tests", slots, 1000), 0, list[int]()

        async def worker(number: int, path: Path, delay: int, works: int, *, fails: bool) -> None:
            nonlocal at_work
            await yield_times(delay)
            await tested.enter(path, 60)
            at_work += 1
            assert at_work <= slots
            try:
                await yield_times(works)
                done.append(number)
                if fails:
                    raise ProviderUnavailable("at work")
            finally:
                at_work -= 1
                tested.leave(path)

        async def ended(number: int, after: int | None) -> None:
            if after is not None:
                await yield_times(after)
                tasks[number].cancel()

        tasks = [
            asyncio.create_task(worker(number, path, delay, works, fails=fails))
            for number, (path, delay, works, _, fails) in enumerate(workers)
        ]
        enders = [ended(number, after) for number, (*_, after, _) in enumerate(workers)]
        await asyncio.gather(*enders)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, (*_, after, fails) in enumerate(workers):
            assert done.count(number) <= 1
            if after is None:
                assert done.count(number) == 1
                assert isinstance(results[number], ProviderUnavailable) is fails
        assert tested.figures == (0, 0)
        assert tested.idle

    asyncio.run(run())


async def yield_times(count: int) -> None:
    """Yield to the event loop `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_slot_granted_as_its_waiter_is_cancelled_goes_to_the_next() -> None:
    """Both happen in the same iteration of the event loop, in either order."""
    for cancel_first in (True, False):
        slots = FairSlots("tests", 1, 10)
        await slots.enter(("a",), 1)
        waiter = asyncio.create_task(slots.enter(("a",), 9))
        other = asyncio.create_task(slots.enter(("b",), 9))
        await yield_times(3)
        if cancel_first:
            waiter.cancel()
            slots.leave(("a",))
        else:
            slots.leave(("a",))
            waiter.cancel()
        assert await other
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        assert slots.figures == (1, 0)


async def test_no_lane_gets_all_slots() -> None:
    """One user's machines hang: others use the slots that this user cannot take."""
    slots = FairSlots("tests", 8, 100)
    hanging = [asyncio.create_task(slots.enter(("a",), 60)) for _ in range(20)]
    await yield_times(2)
    assert slots.figures == (7, 13)
    for path in (("b",), ("c",), ("b",)):
        assert not await slots.enter(path, 60)
        waits = asyncio.create_task(slots.enter(("d",), 60))
        await yield_times(2)
        assert not waits.done()
        slots.leave(path)
        assert await waits
        slots.leave(("d",))
    assert slots.figures == (7, 13)
    slots.leave(("a",))
    await yield_times(2)
    assert slots.figures == (7, 12)
    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging)
    for _ in range(7):
        slots.leave(("a",))
    assert slots.idle


async def test_a_wait_longer_than_the_patience_fails_with_a_retry() -> None:
    slots = FairSlots("tests", 1, 10)
    assert not await slots.enter(("a",), 1)
    began = monotonic()
    with pytest.raises(ProviderRateLimited) as late:
        await slots.enter(("a",), 0.05)
    assert monotonic() - began > 0.04
    assert late.value.retry_after
    assert slots.figures == (1, 0)
    slots.leave(("a",))
    assert slots.idle


async def test_a_full_queue_rejects_with_a_retry_delay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slots = FairSlots("starts", 2, 8)
    await slots.enter(("c",), 60)
    waiters = [asyncio.create_task(slots.enter(("a",), 60)) for _ in range(9)]
    await yield_times(2)
    assert slots.figures == (2, 8)
    for _ in range(3):
        with pytest.raises(ProviderRateLimited) as full:
            slots.check_room(("a",))
        assert 4.0 <= full.value.retry_after <= 6.0
        with pytest.raises(ProviderRateLimited):
            await slots.enter(("a",), 60)
    slots.check_room(("b",))
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    logged = [record.message for record in caplog.records]
    assert logged == ["the queue for starts is full: 2 running, 8 waiting, 1 rejected"]


# --- database slots ----------------------------------------------------------------------------


async def test_when_the_database_hangs_all_waiters_fail_at_once() -> None:
    """They do not fail one after the other: a failed slot is no progress for the other waiters."""
    slots, began = FairSlots("first steps", 1, 100, moving=True), monotonic()
    patience = 2.0
    hangs = DatabaseSlot(slots, ("a",), patience)
    await hangs.take()
    waiters = [asyncio.create_task(DatabaseSlot(slots, ("b",), patience).take()) for _ in range(20)]
    await yield_times(2)
    hangs.give_back(served=False)  # the first waiter gets the slot and would hang too
    assert not await _failures(waiters[:1])
    assert await _failures(waiters[1:]) == 19
    assert monotonic() - began < 19 * patience / 2
    assert slots.figures == (1, 0)


async def test_while_others_are_served_a_waiter_goes_on_waiting() -> None:
    slots, began = FairSlots("first steps", 1, 100, moving=True), monotonic()
    patience = 4.0

    async def work(user_id: str) -> float:
        async with DatabaseSlot(slots, (user_id,), patience):
            waited = monotonic() - began
            await asyncio.sleep(0.26 * patience)
            return waited

    *_, last = await asyncio.gather(*(work(user_id) for user_id in "abcde"))
    assert last > patience
    assert slots.idle


async def test_a_waiter_that_is_cancelled_as_its_slot_is_granted_is_no_progress() -> None:
    """Nothing was served: the patience of the other waiters does not start again."""
    slots, patience = FairSlots("first steps", 1, 100, moving=True), 5.0
    hangs = DatabaseSlot(slots, ("a",), patience)
    await hangs.take()
    waiters = [asyncio.create_task(DatabaseSlot(slots, ("b",), patience).take()) for _ in range(3)]
    await asyncio.sleep(patience / 2)
    began = monotonic()
    hangs.give_back(served=False)
    waiters[0].cancel()  # it owns the slot already, and returns it to the second waiter
    assert await _failures(waiters[2:]) == 1
    assert monotonic() - began < patience
    assert waiters[0].cancelled()
    assert not await _failures(waiters[1:2])
    assert slots.figures == (1, 0)


async def _failures(waiters: list[asyncio.Task[None]]) -> int:
    """How many failed with StorageUnavailable; the other waiters have their slots."""
    results = await asyncio.gather(*waiters, return_exceptions=True)
    return sum(isinstance(result, StorageUnavailable) for result in results)


# --- permits -----------------------------------------------------------------------------------


@dataclass
class OwnedStub:
    """The part of an owned transition that a permit reads."""

    left: float = 60.0


@dataclass
class Row:
    """The part of a session that a permit reads."""

    user_id: str
    decision_id: str | None = "d"
    cause: str | None = None
    tenant: str = "default"
    project_id: str = "nest"

    @property
    def key(self) -> Row:
        """Its own key."""
        return self


def row(user_id: str, **fields: str | None) -> Session:
    return cast("Session", Row(user_id, **fields))  # type: ignore[arg-type]  # the fields of Row


OWNED = cast("Owned", OwnedStub())


async def test_background_work_takes_no_slot_of_a_start_and_has_its_own() -> None:
    limiter = Limiter(Limits(starts=1, background=2))
    async with limiter.permit(row("a"), OWNED) as start:
        async with (
            limiter.permit(row("b", decision_id=None), OWNED) as idle,
            limiter.permit(row("c", cause="LOST"), OWNED) as recovery,
        ):
            assert not (start.waited or idle.waited or recovery.waited)
            third = asyncio.create_task(_through(limiter, row("d", decision_id=None)))
            await yield_times(3)
            assert not third.done()
        await third


async def _through(limiter: Limiter, session: Session) -> None:
    async with limiter.permit(session, OWNED):
        pass


async def test_a_waiting_create_call_holds_no_other_slot() -> None:
    """Resumes proceed during a storm of creates; each app has its own create slots."""
    limits = Limits(starts=1, creates=1, creates_length=2)
    limiter, release = Limiter(limits), asyncio.Event()

    async def create(user_id: str, app: str) -> bool:
        async with limiter.permit(row(user_id), OWNED) as permit:
            async with permit.creating(app):
                await release.wait()
            return True

    storm = [asyncio.create_task(create("storm", "birds")) for _ in range(3)]
    elsewhere = asyncio.create_task(create("wren", "fish"))
    await yield_times(10)
    await asyncio.wait_for(_through(limiter, row("wren")), 5)
    with pytest.raises(ProviderRateLimited):
        limiter.check_room(row("storm").key, creates_in="birds")
    limiter.check_room(row("storm").key, creates_in="fish")
    limiter.check_room(row("storm").key)
    with pytest.raises(ProviderRateLimited):
        await create("storm", "birds")
    release.set()
    assert all(await asyncio.gather(*storm, elsewhere))
    assert limiter.figures == {"starts": (0, 0), "background": (0, 0)}


async def test_a_create_that_fails_or_is_cancelled_gives_all_slots_back() -> None:
    limiter = Limiter(Limits(starts=1, creates=1))

    async def create(*, fails: bool) -> None:
        async with limiter.permit(row("wren"), OWNED) as permit, permit.creating("birds"):
            if fails:
                raise ProviderUnavailable("no")
            await asyncio.Event().wait()

    with pytest.raises(ProviderUnavailable):
        await create(fails=True)
    stuck = [asyncio.create_task(create(fails=False)) for _ in range(3)]
    await yield_times(5)
    for task in stuck:
        task.cancel()
    await asyncio.wait(stuck)
    await asyncio.wait_for(_through(limiter, row("wren")), 5)
    assert limiter.figures == {"starts": (0, 0), "background": (0, 0)}
