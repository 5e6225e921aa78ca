"""The next step of a session: one for every record, and only steps that the states allow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.domain import next_action
from session_service.domain import policy as policies
from session_service.domain.next_action import Action, Step, Timings
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
    dump_conditions,
)
from session_service.domain.states import LEGAL, State, Transition
from session_service.reconcile import due
from session_service.storage.session.change import Change, Now, Terms
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from session_service.storage.session.commit import Commit

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ID = UUID(int=7)
TERMS = Terms(UUID(int=8), timedelta(seconds=10), timedelta(seconds=120))
#: The longest duration that a policy may set.
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

#: The spec of an application that writes its own state.
HOOKED = '{"state_hook": {"http_path": "/state"}}'

#: Lengths that put a record's times before, after and exactly at the limits of its policy.
_SPANS = [timedelta(seconds=n) for n in (0, 0.1, 1, 60, 1800, 86_400)] + [TEN_YEARS]
spans = st.sampled_from(_SPANS) | st.timedeltas(timedelta(0), TEN_YEARS)
times = st.builds(
    lambda span, sign, more: NOW + sign * span + more,
    st.sampled_from(_SPANS),
    st.sampled_from([-1, -1, 1]),
    st.sampled_from([timedelta(0), timedelta(seconds=-1), timedelta(seconds=1)]),
)
perhaps = st.none() | times
any_timings = st.builds(Timings, warn_before=spans, abandoned_after=spans, retention=spans)


@st.composite
def records(draw: st.DrawFn, states: tuple[State, ...] = tuple(State)) -> Record:
    """A row that the database's checks allow: only states in between have a transition."""
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
        conditions=dump_conditions(Condition(kind, "", NOW) for kind in found),
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
#: Steps for which the due pass begins a transition of its own.
_INTENTS = (Action.PAUSE, Action.DEEPEN, Action.EXPIRE, Action.PURGE, Action.DISCARD)


def _first(wanted: Commit) -> Change:
    change = wanted.writes[0]
    assert isinstance(change, Change)
    assert wanted.begins == change.session_id
    return change


def written(record: Record, step: Step, timings: Timings) -> Change | None:
    """The change of the session's row that the due pass writes for the step, if any."""
    if step.action in _INTENTS:
        return _first(due.bring_down(record, step, TERMS))
    if step.action is Action.RECOVER:
        return _first(due.recovery(record, step, TERMS))
    return due.warning(record, timings) if step.action is Action.WARN else None


@given(records(), any_timings)
def test_every_record_has_a_next_step_that_can_be_shown_and_explained(
    record: Record, timings: Timings
) -> None:
    step = next_action.next_step(record, timings)
    assert isinstance(step, Step)
    assert (step.time is None) is (step.action is Action.NOTHING)
    shown = next_action.shown_step(record, timings)
    assert shown.action is not Action.WARN
    explained = next_action.explain(record, timings)
    assert explained.reasons
    assert (explained.idle_time is not None) is (record.session.state is State.ACTIVE)


@pytest.mark.parametrize("state", State)
@given(st.data(), any_timings)
def test_a_due_step_is_a_move_that_the_states_allow(
    state: State, data: st.DataObject, timings: Timings
) -> None:
    """A transition in flight is taken over or discarded, and no other step starts beside it."""
    record = data.draw(records((state,)))
    step = next_action.next_step(record, timings)
    session = record.session
    if session.transition is not None:
        assert step.action in (Action.NOTHING, Action.TAKE_OVER, Action.DISCARD)
    if not step.due(record.now):
        return
    change = written(record, step, timings)
    if change is not None and "state" in change.session:
        assert change.session["state"] in LEGAL[session.state]
        assert change.session["transition"] is not None
    if step.action is Action.TAKE_OVER:
        assert record.lapsed


@given(records(), any_timings)
def test_every_session_has_a_next_step_unless_it_is_being_replaced(
    record: Record, timings: Timings
) -> None:
    """Without any call a session reaches its end by due passes alone: each state has a step."""
    if next_action.next_step(record, timings).action is Action.NOTHING:
        assert record.session.transition is Transition.REPLACE


@given(records((State.ACTIVE,)), any_timings)
def test_no_idle_pause_within_the_timeout_a_hold_or_the_time_after_a_warning(
    record: Record, timings: Timings
) -> None:
    step = next_action.next_step(record, timings)
    if step.action is not Action.PAUSE or not step.due(record.now):
        return
    session, policy = record.session, policies.load(record.session.policy)
    assert session.last_active_time + policy.idle_timeout <= record.now
    assert session.hold_until is None or session.hold_until <= record.now
    assert session.warn_time is not None
    lead = min(timings.warn_before, policy.idle_timeout / 2)
    assert session.warn_time + lead <= record.now
    change = written(record, step, timings)
    assert change is not None
    assert change.idle_for == policy.idle_timeout


@given(records((State.ACTIVE,)), any_timings, spans)
def test_activity_never_makes_an_idle_step_earlier(
    record: Record, timings: Timings, later: timedelta
) -> None:
    session = record.session
    touched = replace(session, last_active_time=session.last_active_time + later)
    assert next_action.idle_time(touched) >= next_action.idle_time(session)
    before = next_action.next_step(record, timings)
    after = next_action.next_step(replace(record, session=touched), timings)
    if before.action is Action.WARN:
        # A later activity turns a warning that is not due yet into no other step.
        assert after.action is Action.WARN


@pytest.mark.parametrize(
    ("quiet", "warned", "action", "after"),
    [
        (0, None, Action.WARN, 9),
        (9, None, Action.WARN, 0),
        (9, 0, Action.PAUSE, 1),
        (10, 0, Action.PAUSE, 1),
        (10, 1, Action.PAUSE, 0),
        # Warned before the last activity: that warning belongs to an earlier pause.
        (0, 1, Action.WARN, 9),
        # No due pass ran for a day: it warns first, and pauses a warning's time later.
        (1440, None, Action.WARN, -1431),
        (1440, 0, Action.PAUSE, 1),
    ],
)
def test_the_warning_comes_a_minute_before_the_pause(
    quiet: int, warned: int | None, action: Action, after: int
) -> None:
    """In minutes: time since activity, time since the warning; the next step and when it is due."""
    session = replace(
        SESSION,
        last_active_time=NOW - timedelta(minutes=quiet),
        warn_time=None if warned is None else NOW - timedelta(minutes=warned),
    )
    step = next_action.next_step(Record(session, CONTAINER, NOW), Timings())
    assert (step.action, step.time) == (action, NOW + timedelta(minutes=after))


def test_the_warning_gives_the_time_at_which_the_pause_is_due() -> None:
    for quiet in (9, 9.5, 10, 1440):
        session = replace(SESSION, last_active_time=NOW - timedelta(minutes=quiet))
        warning = due.warning(Record(session, CONTAINER, NOW), Timings())
        warned = replace(session, warn_time=NOW)
        pause = next_action.next_step(Record(warned, CONTAINER, NOW), Timings())
        assert pause.time is not None
        assert warning.details == {"pause_time": pause.time.isoformat()}


LOST = dump_conditions([Condition(ConditionType.CONTAINER_LOST, "", NOW)])


def next_of_lost(container: Container | None, **policy: object) -> Action:
    """The next step of a paused session whose container was lost at some time."""
    session = replace(
        SESSION,
        state=State.PAUSED,
        pause_depth=PauseDepth.CHECKPOINT,
        conditions=LOST,
        policy=policies.dump(Policy(**policy)),  # type: ignore[arg-type]  # any of its fields
    )
    return next_action.next_step(Record(session, container, NOW), Timings()).action


def test_a_lost_container_is_replaced_at_once_only_where_the_policy_says_so() -> None:
    assert next_of_lost(None, recover_at_once=True) is Action.RECOVER
    assert next_of_lost(None, recover_at_once=False) is Action.EXPIRE


def test_a_container_that_replaced_a_lost_one_is_not_replaced() -> None:
    gone = replace(CONTAINER, destroy_time=NOW)
    unborn = replace(CONTAINER, start_time=None)
    assert next_of_lost(CONTAINER, recover_at_once=True) is Action.EXPIRE
    assert next_of_lost(gone, recover_at_once=True) is Action.RECOVER
    assert next_of_lost(unborn, recover_at_once=True) is Action.RECOVER


def test_a_lost_session_that_cannot_be_recovered_expires() -> None:
    """Otherwise recovery would be tried without end."""
    paused = replace(
        SESSION,
        state=State.PAUSED,
        pause_depth=PauseDepth.CHECKPOINT,
        pause_time=NOW - timedelta(days=2),
        conditions=LOST,
    )
    for expire_after, wanted in ((3, Action.RECOVER), (1, Action.EXPIRE)):
        policy = Policy(recover_at_once=True, expire_after=timedelta(days=expire_after))
        session = replace(paused, policy=policies.dump(policy))
        step = next_action.next_step(Record(session, None, NOW), Timings())
        assert step.action is wanted
        assert step.due(NOW)


def test_a_rejected_recovery_is_retried_with_a_growing_delay() -> None:
    """An outage ends by itself and is retried twice a minute; a rejection once an hour."""
    session = replace(SESSION, failure_count=50)
    outage = transition_changes.tried_again(session)["due_at"]
    refusal = transition_changes.tried_again(session, transition_changes.LAST_RETRY_REFUSED)[
        "due_at"
    ]
    assert outage == Now(timedelta(seconds=30))
    assert refusal == Now(timedelta(hours=1))


@pytest.mark.parametrize("least", list(Continuity))
def test_a_lost_session_is_not_recovered_if_min_continuity_forbids_it(least: Continuity) -> None:
    """The recovery would fail each time."""
    allowed = least is Continuity.NONE
    found = next_of_lost(None, recover_at_once=True, min_continuity=least)
    assert found is (Action.RECOVER if allowed else Action.EXPIRE)
