"""The verdicts of an inventory pass on every combination of facts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from session_service.domain import inventory
from session_service.domain.inventory import (
    Caution,
    Labelled,
    LabelVerdict,
    Listed,
    Tracked,
    Verdict,
)
from session_service.domain.session import ContainerState, PauseDepth
from session_service.domain.states import State

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
LAG = timedelta(seconds=5)
VERIFY = timedelta(minutes=5)
SESSION = UUID(int=1)

#: Times around the limits: the listing's begin, the lag window before it, long before and after.
TIMES = st.one_of(
    st.sampled_from(
        [
            BEGAN + timedelta(seconds=seconds)
            for seconds in (-4000, -300.5, -299.5, -5.001, -5, -4.999, -0.001, 0, 0.001, 60)
        ]
    ),
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 6, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
MAYBE = st.one_of(st.none(), TIMES)
NAMES = st.sampled_from(["m1", "m2"])
TRACKED = st.builds(
    Tracked,
    session_id=st.just(SESSION),
    generation=st.integers(1, 3),
    epoch=st.integers(1, 9),
    app=st.just("birds"),
    container_id=st.just("m1"),
    state=st.sampled_from(State),
    in_flight=st.booleans(),
    current=st.booleans(),
    wanted=st.booleans(),
    pause_depth=st.one_of(st.none(), st.sampled_from(PauseDepth)),
    boot_time=MAYBE,
    verified_at=MAYBE,
    change_time=TIMES,
    create_time=TIMES,
    cordoned=st.booleans(),
)
LISTED = st.builds(
    Listed,
    container_id=NAMES,
    state=st.sampled_from(ContainerState),
    last_start_time=MAYBE,
    create_time=MAYBE,
    labels=st.just({}),
)
LABELLED = st.builds(
    Labelled,
    session_id=st.just(SESSION),
    generation=st.integers(1, 3),
    container_id=st.one_of(st.none(), NAMES),
    destroyed=st.booleans(),
    current=st.booleans(),
    state=st.sampled_from(State),
    in_flight=st.booleans(),
    started=st.booleans(),
    change_time=TIMES,
)
CAUTION = st.builds(
    Caution,
    min_age=st.timedeltas(timedelta(0), timedelta(days=1)),
    passes=st.integers(1, 5),
    limit=st.integers(0, 5),
    breaker=st.integers(0, 8),
)
COUNTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 6), max_size=10)


def judge(row: Tracked, listed: Listed | None) -> Verdict:
    """The verdict of the listing on the row."""
    return inventory.judge(row, listed, BEGAN, LAG, VERIFY)


def settled(row: Tracked) -> Tracked:
    """The row as that of a session without a transition, last changed long ago."""
    long_ago = BEGAN - timedelta(days=1)
    return replace(
        row, change_time=long_ago, create_time=long_ago, in_flight=False, current=True, wanted=True
    )


@given(TRACKED, st.one_of(st.none(), LISTED))
def test_every_row_has_a_verdict_and_a_later_change_has_none(
    row: Tracked, listed: Listed | None
) -> None:
    """Total; a row that changed after the listing began, or within the lag before, has none."""
    verdict = judge(row, listed)
    assert verdict in Verdict
    if max(row.change_time, row.create_time) + LAG >= BEGAN:
        assert verdict is Verdict.NOTHING
    if row.in_flight or not row.current or not row.wanted:
        assert verdict is Verdict.NOTHING


@given(TRACKED, st.one_of(st.none(), LISTED))
def test_only_an_unlisted_machine_is_missing(row: Tracked, listed: Listed | None) -> None:
    """Of a session without a transition. Only a machine that is absent or destroyed is missing."""
    missing = listed is None or listed.state is ContainerState.DESTROYED
    assert (judge(settled(row), listed) is Verdict.MISSING) is missing


@given(TRACKED, LISTED)
def test_a_verdict_fits_the_state_of_the_row(row: Tracked, listed: Listed) -> None:
    """The change that it leads to is a legal move of that state."""
    verdict = judge(row, listed)
    states = {
        Verdict.VERIFIED: State.ACTIVE,
        Verdict.RESTARTED: State.ACTIVE,
        Verdict.FELL: State.ACTIVE,
        Verdict.SANK: State.PAUSED,
        Verdict.WOKE: State.PAUSED,
        Verdict.STRAYED: State.PAUSED,
        Verdict.WOKE_ENDED: State.ENDED,
    }
    if verdict in states:
        assert row.state is states[verdict]
    running = listed.state is ContainerState.STARTED
    if verdict in (Verdict.VERIFIED, Verdict.WOKE, Verdict.STRAYED, Verdict.WOKE_ENDED):
        assert running
    if verdict in (Verdict.FELL, Verdict.SANK):
        assert listed.state in inventory.NOT_RUNNING
    if verdict is Verdict.WOKE:
        assert not row.cordoned


@given(TRACKED, LISTED)
def test_only_the_verified_boot_is_verified_again(row: Tracked, listed: Listed) -> None:
    """Its newest start is the verified one; without a recorded start there is no verdict."""
    if judge(row, listed) is Verdict.VERIFIED:
        assert row.boot_time is not None
        assert row.boot_time == listed.last_start_time


@given(LISTED, st.one_of(st.none(), LABELLED))
def test_a_machine_with_a_row_is_never_an_orphan(listed: Listed, row: Labelled | None) -> None:
    """Nor is one that a row may still adopt, or whose row is in transition or changed lately. Only
    of a session that went back to PAUSED no start is left that could record it.
    """
    verdict, why = inventory.judge_labelled(listed, row, BEGAN, LAG)
    assert why
    if row is None:
        assert verdict is LabelVerdict.ORPHAN
        return
    given_up = row.container_id is None and row.current and row.state is State.PAUSED
    given_up = given_up and not row.started
    has = row.container_id in (None, listed.container_id) and not row.destroyed and not given_up
    moving = row.current and row.in_flight and row.container_id in (None, listed.container_id)
    if has or moving or row.change_time + LAG >= BEGAN:
        assert verdict is LabelVerdict.KNOWN
    if verdict is LabelVerdict.FOUND:
        assert row.container_id == listed.container_id
        assert (row.current, row.destroyed, row.in_flight) == (True, True, False)
        assert row.state is State.PAUSED


@given(LISTED, TIMES, CAUTION)
def test_only_a_known_age_is_old_enough(listed: Listed, now: datetime, caution: Caution) -> None:
    """The age must be at least `min_age`."""
    old = inventory.old_enough(listed, now, caution)
    if listed.create_time is None:
        assert not old
    else:
        assert old is (now - listed.create_time >= caution.min_age)


@given(COUNTS, CAUTION)
def test_never_more_than_the_cap_are_destroyed_and_none_of_too_many(
    counts: dict[str, int], caution: Caution
) -> None:
    """Nor is one that too few passes saw. Each spared machine has a reason."""
    spared = inventory.spared_because(counts, caution)
    doomed = counts.keys() - spared.keys()
    assert spared.keys() <= counts.keys()
    assert all(spared.values())
    assert len(doomed) <= caution.limit
    assert all(counts[name] >= caution.passes for name in doomed)
    if len(counts) > caution.breaker:
        assert not doomed
    else:
        sure = [name for name, count in counts.items() if count >= caution.passes]
        assert len(doomed) == min(len(sure), caution.limit)
