"""The fair queue over any order of arrivals, and its places over any cancellations."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.errors import ProviderRateLimited, ProviderUnavailable, StorageUnavailable
from session_service.lifecycle import first_steps
from session_service.lifecycle.first_steps import FirstSteps
from session_service.lifecycle.places import Places
from session_service.lifecycle.queue import FairQueue, Path, Ticket
from session_service.lifecycle.turns import Limits, Turns

if TYPE_CHECKING:
    from session_service.domain.session import Session
    from session_service.lifecycle.ownership import Held

FLAT = st.tuples(st.sampled_from("abcdef"))
DEEP = st.tuples(st.sampled_from("xyz"), st.sampled_from("pq"), st.sampled_from("abc"))
STEPS = st.sampled_from(["put", "put", "take", "leave"])


@dataclass
class Waiting:
    """An item that was put and not yet taken: how many turns others had meanwhile."""

    ticket: Ticket
    ahead: int
    turns: int = 0


@dataclass
class Run:
    """A queue, and what it should be doing."""

    queue: FairQueue[int] = field(default_factory=FairQueue)
    lanes: dict[Path, list[int]] = field(default_factory=lambda: defaultdict(list))
    items: dict[int, Waiting] = field(default_factory=dict)
    put: int = 0
    ended: set[int] = field(default_factory=set)

    def step(self, what: str, path: Path, pick: int) -> int | None:
        """Do one thing; the item that was taken, if one was."""
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
        """What is always so."""
        assert len(self.queue) == len(self.items) == self.queue.waiting(())
        for path, lane in self.lanes.items():
            assert self.queue.waiting(path) == len(lane)


@given(st.lists(st.tuples(STEPS, FLAT, st.integers(0, 50)), max_size=150))
def test_no_lane_waits_more_turns_than_there_are_lanes(
    steps: list[tuple[str, Path, int]],
) -> None:
    """For each of its own items: whatever arrives, in whatever order, and leaves again."""
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
    """By tenant, then project, then user: the product of the lanes beside it on each level."""
    run = Run()
    paths = {path for _, path, _ in steps}
    for what, path, pick in [*steps, *[("take", ("x", "p", "a"), 0)] * 151]:
        item = run.step(what, path, pick)
        if item is not None:
            waiting = run.taken(item)
            tenant, project, _ = waiting.ticket.path
            beside = (
                len({p[0] for p in paths})
                * len({p[1] for p in paths if p[0] == tenant})
                * len({p[2] for p in paths if p[:2] == (tenant, project)})
            )
            assert waiting.turns <= (waiting.ahead + 1) * beside
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
    """All others are taken, each lane's in its order, and none of it; then it is."""
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


def test_a_full_queue_has_room_for_who_did_not_fill_it() -> None:
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
def test_the_queue_is_bounded_whoever_comes(arrivals: list[Path], length: int) -> None:
    queue: FairQueue[int] = FairQueue()
    for path in arrivals:
        if queue.has_room(path, length):
            queue.put(path, 0)
        assert len(queue) <= 2 * length
    if len(arrivals) >= length:
        assert len(queue) >= length


# --- places ------------------------------------------------------------------------------------

WORKERS = st.lists(
    st.tuples(
        FLAT,
        st.integers(0, 5),  # yields before it comes
        st.integers(0, 5),  # yields at work
        st.one_of(st.none(), st.integers(0, 12)),  # yields before it is cancelled
        st.booleans(),  # fails at work
    ),
    max_size=25,
)


@given(WORKERS, st.integers(1, 3))
def test_places_are_never_overbooked_nor_lost(
    workers: list[tuple[Path, int, int, int | None, bool]], places: int
) -> None:
    """Whoever is cancelled, at whichever moment: each other works once, and all places are free."""

    async def run() -> None:
        spots, at_work, done = Places("tests", places, 1000), 0, list[int]()

        async def worker(number: int, path: Path, comes: int, works: int, *, fails: bool) -> None:
            nonlocal at_work
            await turns(comes)
            await spots.enter(path, 60)
            at_work += 1
            assert at_work <= places
            try:
                await turns(works)
                done.append(number)
                if fails:
                    raise ProviderUnavailable("at work")
            finally:
                at_work -= 1
                spots.leave(path)

        async def ended(number: int, after: int | None) -> None:
            if after is not None:
                await turns(after)
                tasks[number].cancel()

        tasks = [
            asyncio.create_task(worker(number, path, comes, works, fails=fails))
            for number, (path, comes, works, _, fails) in enumerate(workers)
        ]
        enders = [ended(number, after) for number, (*_, after, _) in enumerate(workers)]
        await asyncio.gather(*enders)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, (*_, after, fails) in enumerate(workers):
            assert done.count(number) <= 1
            if after is None:
                assert done.count(number) == 1
                assert isinstance(results[number], ProviderUnavailable) is fails
        assert spots.figures == (0, 0)
        assert spots.idle

    asyncio.run(run())


async def turns(count: int) -> None:
    """Let others run so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_turn_that_comes_as_its_waiter_is_cancelled_goes_on() -> None:
    """In the same pass of the loop, either way round."""
    for cancel_first in (True, False):
        places = Places("tests", 1, 10)
        await places.enter(("a",), 1)
        waiter = asyncio.create_task(places.enter(("a",), 9))
        other = asyncio.create_task(places.enter(("b",), 9))
        await turns(3)
        if cancel_first:
            waiter.cancel()
            places.leave(("a",))
        else:
            places.leave(("a",))
            waiter.cancel()
        assert await other
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        assert places.figures == (1, 0)


async def test_no_lane_has_all_the_places() -> None:
    """One user's machines hang: the others go on, by the places that he cannot have."""
    places = Places("tests", 8, 100)
    hanging = [asyncio.create_task(places.enter(("a",), 60)) for _ in range(20)]
    await turns(2)
    assert places.figures == (7, 13)
    for path in (("b",), ("c",), ("b",)):
        assert not await places.enter(path, 60)
        waits = asyncio.create_task(places.enter(("d",), 60))
        await turns(2)
        assert not waits.done()
        places.leave(path)
        assert await waits
        places.leave(("d",))
    assert places.figures == (7, 13)
    places.leave(("a",))
    await turns(2)
    assert places.figures == (7, 12)
    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging)
    for _ in range(7):
        places.leave(("a",))
    assert places.idle


async def test_who_waits_too_long_is_told_to_come_again() -> None:
    places = Places("tests", 1, 10)
    assert not await places.enter(("a",), 1)
    begun = monotonic()
    with pytest.raises(ProviderRateLimited) as late:
        await places.enter(("a",), 0.05)
    assert 0.04 < monotonic() - begun < 1
    assert late.value.retry_after
    assert places.figures == (1, 0)
    places.leave(("a",))
    assert places.idle


async def test_a_full_queue_refuses_with_a_time_to_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = Places("starts", 2, 8)
    await places.enter(("c",), 60)
    waiters = [asyncio.create_task(places.enter(("a",), 60)) for _ in range(9)]
    await turns(2)
    assert places.figures == (2, 8)
    for _ in range(3):
        with pytest.raises(ProviderRateLimited) as full:
            places.check_room(("a",))
        assert 4.0 <= full.value.retry_after <= 6.0
        with pytest.raises(ProviderRateLimited):
            await places.enter(("a",), 60)
    places.check_room(("b",))
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    told = [record.message for record in caplog.records]
    assert told == ["the queue for starts is full: 2 at work, 8 waiting, 1 refused"]


# --- first steps -------------------------------------------------------------------------------


async def test_behind_a_database_that_hangs_all_who_wait_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They do not meet it one after the other; a failure of one is no progress for the others."""
    monkeypatch.setattr(first_steps, "PATIENCE", 0.1)
    places, begun = Places("first steps", 1, 100, moving=True), monotonic()
    hangs = FirstSteps(places, ("a",))
    await hangs.go_on()
    waiters = [asyncio.create_task(FirstSteps(places, ("b",)).go_on()) for _ in range(20)]
    await turns(2)
    hangs.step_back(served=False)  # the first of them meets it too
    assert not await _told(waiters[:1])
    assert await _told(waiters[1:]) == 19
    assert monotonic() - begun < 1
    assert places.figures == (1, 0)


async def test_while_others_are_served_who_waits_has_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_steps, "PATIENCE", 1.0)
    places, begun = Places("first steps", 1, 100, moving=True), monotonic()

    async def at_work(user_id: str) -> float:
        async with FirstSteps(places, (user_id,)):
            waited = monotonic() - begun
            await asyncio.sleep(0.4)
            return waited

    *_, last = await asyncio.gather(*(at_work(user_id) for user_id in "abcde"))
    assert last > 1.2
    assert places.idle


async def _told(waiters: list[asyncio.Task[None]]) -> int:
    """How many were told that the database does not answer; the others have their places."""
    results = await asyncio.gather(*waiters, return_exceptions=True)
    return sum(isinstance(result, StorageUnavailable) for result in results)


# --- turns -------------------------------------------------------------------------------------


@dataclass
class Holding:
    """What a turn needs of an owned transition."""

    left: float = 60.0


@dataclass
class Row:
    """What a turn needs of a session."""

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


HELD = cast("Held", Holding())


async def test_background_work_takes_no_starts_place_and_has_its_own() -> None:
    turns_ = Turns(Limits(starts=1, background=2))
    async with turns_.turn(row("a"), HELD) as start:
        async with (
            turns_.turn(row("b", decision_id=None), HELD) as idle,
            turns_.turn(row("c", cause="LOST"), HELD) as recovery,
        ):
            assert not (start.waited or idle.waited or recovery.waited)
            third = asyncio.create_task(_through(turns_, row("d", decision_id=None)))
            await turns(3)
            assert not third.done()
        await third


async def _through(turns_: Turns, session: Session) -> None:
    async with turns_.turn(session, HELD):
        pass


async def test_a_create_call_that_waits_holds_no_other_place() -> None:
    """Resumes go on past a storm of creates; each app has its own calls."""
    limits = Limits(starts=1, creates=1, creates_length=2)
    turns_, release = Turns(limits), asyncio.Event()

    async def create(user_id: str, app: str) -> bool:
        async with turns_.turn(row(user_id), HELD) as turn:
            async with turn.creating(app):
                await release.wait()
            return True

    storm = [asyncio.create_task(create("storm", "birds")) for _ in range(3)]
    elsewhere = asyncio.create_task(create("wren", "fish"))
    await turns(10)
    await asyncio.wait_for(_through(turns_, row("wren")), 5)
    with pytest.raises(ProviderRateLimited):
        turns_.check_room(row("storm").key, creates_in="birds")
    turns_.check_room(row("storm").key, creates_in="fish")
    turns_.check_room(row("storm").key)
    with pytest.raises(ProviderRateLimited):
        await create("storm", "birds")
    release.set()
    assert all(await asyncio.gather(*storm, elsewhere))
    assert turns_.figures == {"starts": (0, 0), "background": (0, 0)}


async def test_a_create_that_fails_or_is_cancelled_gives_all_back() -> None:
    turns_ = Turns(Limits(starts=1, creates=1))

    async def create(*, fails: bool) -> None:
        async with turns_.turn(row("wren"), HELD) as turn, turn.creating("birds"):
            if fails:
                raise ProviderUnavailable("no")
            await asyncio.Event().wait()

    with pytest.raises(ProviderUnavailable):
        await create(fails=True)
    stuck = [asyncio.create_task(create(fails=False)) for _ in range(3)]
    await turns(5)
    for task in stuck:
        task.cancel()
    await asyncio.wait(stuck)
    await asyncio.wait_for(_through(turns_, row("wren")), 5)
    assert turns_.figures == {"starts": (0, 0), "background": (0, 0)}
