"""What is next for a session: an answer for every record, and none that the states forbid."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_service.domain import conditions, idleness, keeping
from session_service.domain import policy as policies
from session_service.domain.keeping import Action, Habits, Step
from session_service.domain.policy import Persistence, Policy
from session_service.domain.session import (
    Condition,
    ConditionType,
    Container,
    ContainerState,
    Continuity,
    EndReason,
    PauseDepth,
    Record,
    Session,
)
from session_service.domain.states import LEGAL, State, Transition
from session_service.lifecycle import outcomes, own_steps
from session_service.storage.assignments import Now
from session_service.storage.leases import Terms

if TYPE_CHECKING:
    from session_service.storage.transitions import Change

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ID = UUID(int=7)
TERMS = Terms(UUID(int=8), timedelta(seconds=10), timedelta(seconds=120))
#: As long as any setting can be.
TEN_YEARS = timedelta(days=3660)

SESSION = Session(
    session_id=ID,
    tenant="default",
    project_id="nest",
    user_id="wren",
    slot="default",
    state=State.ACTIVE,
    generation=1,
    epoch=1,
    transition=None,
    prior_state=None,
    owner=None,
    lease_until=None,
    deadline=None,
    decision_id=None,
    wish=None,
    successor_id=None,
    predecessor_id=None,
    pause_depth=None,
    loss_untold=False,
    conditions="[]",
    spec="{}",
    fingerprint="",
    policy=policies.dump(Policy(idle_timeout=timedelta(minutes=10))),
    verified_at=None,
    create_time=NOW,
    start_time=NOW,
    last_active_time=NOW,
    pause_time=None,
    end_time=None,
    purge_time=None,
    due_at=None,
    start_count=1,
    end_reason=None,
    cause=None,
    failure_count=0,
    change_time=NOW,
    hold_until=None,
    holds="{}",
    warn_time=None,
    activity="",
    event_sequence=1,
)
CONTAINER = Container(
    session_id=ID,
    generation=1,
    name="c",
    app="a",
    container_id="m",
    state=ContainerState.STARTED,
    region="iad",
    boot_id=None,
    boot_time=None,
    start_time=NOW,
    cordoned=False,
    wanted=True,
    create_time=NOW,
    destroy_time=None,
)

#: Of an application that hands its state out.
HOOKED = '{"state_hook": {"http_path": "/state"}}'

#: A few lengths, so that a record has times on either side of what its policy says, and equal ones.
_SPANS = [timedelta(seconds=n) for n in (0, 0.1, 1, 60, 1800, 86_400)] + [TEN_YEARS]
spans = st.sampled_from(_SPANS) | st.timedeltas(timedelta(0), TEN_YEARS)
times = st.builds(
    lambda span, sign, more: NOW + sign * span + more,
    st.sampled_from(_SPANS),
    st.sampled_from([-1, -1, 1]),
    st.sampled_from([timedelta(0), timedelta(seconds=-1), timedelta(seconds=1)]),
)
perhaps = st.none() | times
habits = st.builds(Habits, warn_before=spans, abandoned_after=spans, retention=spans)


@st.composite
def records(draw: st.DrawFn, states: tuple[State, ...] = tuple(State)) -> Record:
    """A row such as the database's own checks allow: only states on their way have a transition."""
    state = draw(st.sampled_from(states))
    moving = state in (State.STARTING, State.PAUSING, State.ENDING)
    policy = Policy(
        persistence=draw(st.sampled_from(Persistence)),
        idle_timeout=draw(spans),
        deepen_after=draw(spans),
        grace_period=draw(spans),
        max_lifetime=draw(st.none() | spans),
        expire_after=draw(spans),
        checkpoint_after=draw(st.just(timedelta(0)) | spans),
        recover_at_once=draw(st.booleans()),
    )
    found = draw(st.lists(st.sampled_from(ConditionType), max_size=2, unique=True))
    session = replace(
        SESSION,
        state=state,
        transition=draw(st.sampled_from(_TRANSITIONS[state])) if moving else None,
        prior_state=draw(st.none() | st.sampled_from(State)) if moving else None,
        lease_until=draw(perhaps),
        deadline=draw(perhaps),
        decision_id=draw(st.none() | st.just(ID)),
        pause_depth=draw(st.none() | st.sampled_from(PauseDepth)),
        conditions=conditions.dump(Condition(kind, "", NOW) for kind in found),
        policy=policies.dump(policy),
        spec=draw(st.sampled_from(["{}", HOOKED])),
        last_active_time=draw(times),
        pause_time=draw(perhaps),
        end_time=draw(perhaps),
        purge_time=draw(perhaps),
        due_at=draw(perhaps),
        end_reason=draw(st.none() | st.sampled_from(EndReason)),
        change_time=draw(times),
        hold_until=draw(perhaps),
        warn_time=draw(perhaps),
    )
    container = draw(
        st.none()
        | st.builds(
            lambda state, wanted, gone, named: replace(
                CONTAINER,
                state=state,
                wanted=wanted,
                destroy_time=gone,
                container_id="m" if named else None,
            ),
            st.sampled_from(ContainerState),
            st.booleans(),
            perhaps,
            st.booleans(),
        )
    )
    return Record(session, container, NOW)


_TRANSITIONS = {
    State.STARTING: (Transition.START,),
    State.PAUSING: (Transition.PAUSE,),
    State.ENDING: (Transition.END, Transition.PURGE, Transition.REPLACE),
}
#: Steps that begin a transition of the keeper's own.
_INTENTS = (Action.PAUSE, Action.DEEPEN, Action.EXPIRE, Action.PURGE, Action.DISCARD)


def written(record: Record, step: Step, ways: Habits) -> Change | None:
    """What the keeper would write for the step; None where it is no write of the session's row."""
    if step.action in _INTENTS:
        return own_steps.intent(record, step, TERMS)
    if step.action is Action.RECOVER:
        return own_steps.recovery(record, step, TERMS)[0]
    return own_steps.warning(record, ways) if step.action is Action.WARN else None


@given(records(), habits)
def test_every_record_has_a_next_step_that_can_be_shown_and_explained(
    record: Record, ways: Habits
) -> None:
    step = keeping.next_step(record, ways)
    assert isinstance(step, Step)
    assert (step.time is None) is (step.action is Action.NOTHING)
    shown = keeping.shown_step(record, ways)
    assert shown.action is not Action.WARN
    told = idleness.explain(record, ways)
    assert told.reasons
    assert (told.idle_time is not None) is (record.session.state is State.ACTIVE)


@pytest.mark.parametrize("state", State)
@settings(max_examples=200)
@given(st.data(), habits)
def test_what_is_due_is_a_move_that_the_states_allow(
    state: State, data: st.DataObject, ways: Habits
) -> None:
    """And a transition in flight is taken over or given up, never overrun by another step."""
    record = data.draw(records((state,)))
    step = keeping.next_step(record, ways)
    session = record.session
    if session.transition is not None:
        assert step.action in (Action.NOTHING, Action.TAKE_OVER, Action.DISCARD)
    if not step.due(record.now):
        return
    change = written(record, step, ways)
    if change is not None and "state" in change.session:
        assert change.session["state"] in LEGAL[session.state]
        assert change.session["transition"] is not None
    if step.action is Action.TAKE_OVER:
        assert record.lapsed


@given(records(), habits)
def test_nothing_runs_out_of_steps_but_what_another_decides(record: Record, ways: Habits) -> None:
    """A session that nobody comes back to gets to its end by the keeper alone: no step is never."""
    if keeping.next_step(record, ways).action is Action.NOTHING:
        assert record.session.transition is Transition.REPLACE


@given(records((State.ACTIVE,)), habits)
def test_no_idle_pause_within_the_timeout_a_hold_or_the_time_after_a_warning(
    record: Record, ways: Habits
) -> None:
    step = keeping.next_step(record, ways)
    if step.action is not Action.PAUSE or not step.due(record.now):
        return
    session, policy = record.session, policies.load(record.session.policy)
    assert session.last_active_time + policy.idle_timeout <= record.now
    assert session.hold_until is None or session.hold_until <= record.now
    assert session.warn_time is not None
    lead = min(ways.warn_before, policy.idle_timeout / 2)
    assert session.warn_time + lead <= record.now
    change = written(record, step, ways)
    assert change is not None
    assert change.idle_for == policy.idle_timeout


@given(records((State.ACTIVE,)), habits, spans)
def test_activity_never_brings_a_step_of_idleness_nearer(
    record: Record, ways: Habits, later: timedelta
) -> None:
    session = record.session
    touched = replace(session, last_active_time=session.last_active_time + later)
    assert keeping.idle_time(touched) >= keeping.idle_time(session)
    before = keeping.next_step(record, ways)
    after = keeping.next_step(replace(record, session=touched), ways)
    if before.action is Action.WARN:
        # What need not be warned of yet need not be after somebody came, either.
        assert after.action is Action.WARN


@pytest.mark.parametrize(
    ("quiet", "warned", "action", "after"),
    [
        (0, None, Action.WARN, 9),
        (9, None, Action.WARN, 0),
        (9, 0, Action.PAUSE, 1),
        (10, 0, Action.PAUSE, 1),
        (10, 1, Action.PAUSE, 0),
        # Warned before somebody came back: that warning is of another pause.
        (0, 1, Action.WARN, 9),
        # No keeper for a day: it still warns, and leaves the time that the warning tells.
        (1440, None, Action.WARN, -1431),
        (1440, 0, Action.PAUSE, 1),
    ],
)
def test_the_warning_comes_a_minute_before_the_pause(
    quiet: int, warned: int | None, action: Action, after: int
) -> None:
    """Minutes: quiet for so long, warned so long ago; the next step, and in how long."""
    session = replace(
        SESSION,
        last_active_time=NOW - timedelta(minutes=quiet),
        warn_time=None if warned is None else NOW - timedelta(minutes=warned),
    )
    step = keeping.next_step(Record(session, CONTAINER, NOW), Habits())
    assert (step.action, step.time) == (action, NOW + timedelta(minutes=after))


def test_the_warning_tells_the_time_at_which_the_pause_is_due() -> None:
    for quiet in (9, 9.5, 10, 1440):
        session = replace(SESSION, last_active_time=NOW - timedelta(minutes=quiet))
        told = own_steps.warning(Record(session, CONTAINER, NOW), Habits())
        warned = replace(session, warn_time=NOW)
        pause = keeping.next_step(Record(warned, CONTAINER, NOW), Habits())
        assert pause.time is not None
        assert told.details == {"pause_time": pause.time.isoformat()}


LOST = conditions.dump([Condition(ConditionType.CONTAINER_LOST, "", NOW)])


def next_of_lost(container: Container | None, **policy: object) -> Action:
    """What comes next for a session at rest whose container was lost at some time."""
    session = replace(
        SESSION,
        state=State.PAUSED,
        pause_depth=PauseDepth.CHECKPOINT,
        conditions=LOST,
        policy=policies.dump(Policy(**policy)),  # type: ignore[arg-type]  # any of its fields
    )
    return keeping.next_step(Record(session, container, NOW), Habits()).action


def test_a_lost_container_is_replaced_at_once_only_where_the_policy_says_so() -> None:
    assert next_of_lost(None, recover_at_once=True) is Action.RECOVER
    assert next_of_lost(None, recover_at_once=False) is Action.EXPIRE


def test_what_stands_in_place_of_a_lost_container_is_not_replaced() -> None:
    gone = replace(CONTAINER, destroy_time=NOW)
    unborn = replace(CONTAINER, start_time=None)
    assert next_of_lost(CONTAINER, recover_at_once=True) is Action.EXPIRE
    assert next_of_lost(gone, recover_at_once=True) is Action.RECOVER
    assert next_of_lost(unborn, recover_at_once=True) is Action.RECOVER


def test_what_cannot_be_replaced_ends_when_nobody_came_back_for_it() -> None:
    """Else it would be tried for ever."""
    rested = replace(
        SESSION,
        state=State.PAUSED,
        pause_depth=PauseDepth.CHECKPOINT,
        pause_time=NOW - timedelta(days=2),
        conditions=LOST,
    )
    for expire_after, wanted in ((3, Action.RECOVER), (1, Action.EXPIRE)):
        policy = Policy(recover_at_once=True, expire_after=timedelta(days=expire_after))
        session = replace(rested, policy=policies.dump(policy))
        step = keeping.next_step(Record(session, None, NOW), Habits())
        assert step.action is wanted
        assert step.due(NOW)


def test_a_recovery_that_is_refused_is_tried_more_and_more_rarely() -> None:
    """An outage ends by itself, and is asked after twice a minute; a refusal is not."""
    session = replace(SESSION, failure_count=50)
    outage = outcomes.tried_again(session)["due_at"]
    refusal = outcomes.tried_again(session, outcomes.LAST_RETRY_REFUSED)["due_at"]
    assert outage == Now(timedelta(seconds=30))
    assert refusal == Now(timedelta(hours=1))


@pytest.mark.parametrize("least", list(Continuity))
def test_nothing_is_replaced_that_no_start_may_come_back_with(least: Continuity) -> None:
    """It would only be refused, again and again."""
    allowed = least is Continuity.NONE
    found = next_of_lost(None, recover_at_once=True, min_continuity=least)
    assert found is (Action.RECOVER if allowed else Action.EXPIRE)
