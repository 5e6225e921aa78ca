"""The decision of a start as a table, and its properties for arbitrary facts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.domain import ladder, plans
from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.evidence import Evidence, Presence
from session_service.domain.ladder import BEST_OF, decide
from session_service.domain.session import (
    Container,
    ContainerState,
    Continuity,
    Mode,
    PauseDepth,
    Record,
    Rung,
    Session,
)
from session_service.domain.states import State, Transition
from session_service.domain.wish import Wish

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
POLICY = policies.Policy()
SECOND = timedelta(seconds=1)
CONTINUE = Wish(Mode.CONTINUE)


def container(**changes: object) -> Container:
    """A container that ran once and was verified."""
    made = Container(
        UUID(int=1), 1, "roost-1-1", "app", "m1", ContainerState.STARTED, "iad", "boot", NOW,
        NOW, cordoned=False, wanted=True, create_time=NOW, destroy_time=None,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # any of its fields


def session(**changes: object) -> Session:
    """An ACTIVE session that was verified a second ago."""
    made = Session(
        session_id=UUID(int=1), tenant="t", project_id="p", user_id="u", slot="default",
        state=State.ACTIVE, generation=1, epoch=3, transition=None, prior_state=None, owner=None,
        lease_until=None, deadline=None, decision_id=None, wish=None, successor_id=None,
        predecessor_id=None, pause_depth=None, loss_untold=False, conditions="[]", spec="{}",
        fingerprint="f", policy=policies.dump(POLICY), verified_at=NOW - SECOND, create_time=NOW,
        start_time=NOW, last_active_time=NOW, pause_time=None, end_time=None, purge_time=None,
        due_at=None, start_count=1, end_reason=None, cause=None, failure_count=0, change_time=NOW,
        hold_until=None, holds="{}", warn_time=None, activity="", event_sequence=3,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # any of its fields


def record(where: Container | None = None, **changes: object) -> Record:
    """A record of the session above with its container."""
    return Record(session(**changes), where or container(), NOW)


def starting(**changes: object) -> Record:
    """A session whose start is in flight."""
    flight: dict[str, object] = {
        "state": State.STARTING,
        "transition": Transition.START,
        "lease_until": NOW + 5 * SECOND,
        "deadline": NOW + 60 * SECOND,
        "decision_id": uuid4(),
        "owner": uuid4(),
        "wish": wishes.dump(CONTINUE),
    }
    return record(None, **{**flight, **changes})


def test_without_a_session_every_mode_opens_one() -> None:
    """No session exists: create, also for FAIL_IF_LIVE."""
    for mode in Mode:
        assert isinstance(decide(Wish(mode), POLICY, None), plans.Open)


def test_a_freshly_verified_session_is_used_and_another_is_probed() -> None:
    """The freshness window decides, up to its last moment."""
    assert isinstance(decide(CONTINUE, POLICY, record()), plans.Use)
    old = record(verified_at=NOW - ladder.FRESHNESS)
    assert isinstance(decide(CONTINUE, POLICY, old), plans.Observe)
    never = record(verified_at=None)
    assert isinstance(decide(CONTINUE, POLICY, never), plans.Observe)


@pytest.mark.parametrize(
    ("intact", "expected"),
    [
        (True, (Continuity.MEMORY, True)),
        (False, (Continuity.FILESYSTEM, True)),
        (None, (Continuity.FILESYSTEM, False)),
    ],
)
def test_a_probe_claims_no_more_than_it_proved(
    intact: bool | None, expected: tuple[Continuity, bool]
) -> None:
    """Rule 9: memory is claimed only if the container still runs the boot that was verified."""
    evidence = Evidence(Presence.PRESENT, ContainerState.STARTED, intact)
    plan = decide(CONTINUE, POLICY, record(verified_at=None), evidence)
    assert isinstance(plan, plans.Use)
    assert (plan.continuity, plan.verified) == expected


def test_an_unreported_loss_is_reported() -> None:
    """Also within the freshness window: memory was lost since the last answer."""
    plan = decide(CONTINUE, POLICY, record(loss_untold=True))
    assert isinstance(plan, plans.Use)
    assert plan.continuity is Continuity.FILESYSTEM
    ephemeral = record(loss_untold=True, spec='{"ephemeral_root_filesystem": true}')
    plan = decide(CONTINUE, POLICY, ephemeral)
    assert isinstance(plan, plans.Use)
    assert plan.continuity is Continuity.NONE


def test_an_unknown_provider_is_overruled_by_a_preview_that_answers() -> None:
    """Rule 7: users keep access during an outage, and nothing is claimed as verified."""
    stale = record(verified_at=None)
    answering = Evidence(Presence.UNKNOWN, preview_answered=True)
    plan = decide(CONTINUE, POLICY, stale, answering)
    assert isinstance(plan, plans.Use)
    assert (plan.verified, plan.unreachable) == (False, True)
    silent = Evidence(Presence.UNKNOWN, preview_answered=False)
    rejected = decide(CONTINUE, POLICY, stale, silent)
    assert isinstance(rejected, plans.Refuse)
    assert rejected.refusal is plans.Refusal.PROVIDER_UNAVAILABLE


@pytest.mark.parametrize(
    ("state", "first"),
    [
        (ContainerState.SUSPENDED, Rung.RESUME),
        (ContainerState.STOPPED, Rung.RESTART),
        (ContainerState.FAILED, Rung.RESTART),
    ],
)
def test_a_container_found_suspended_or_stopped_is_brought_up(
    state: ContainerState, first: Rung
) -> None:
    """A state that Roost did not cause is accepted and resumed from."""
    evidence = Evidence(Presence.PRESENT, state)
    plan = decide(CONTINUE, POLICY, record(verified_at=None), evidence)
    assert isinstance(plan, plans.TryRungs)
    assert plan.rungs[0] is first


def test_a_lost_container_leaves_only_create_which_min_continuity_rejects() -> None:
    """A start that asks for any continuity creates nothing."""
    gone = Evidence(Presence.ABSENT)
    plan = decide(CONTINUE, POLICY, record(verified_at=None), gone)
    assert isinstance(plan, plans.TryRungs)
    assert plan.rungs == (Rung.CREATE,)
    strict = Wish(Mode.CONTINUE, min_continuity=Continuity.FILESYSTEM)
    rejected = decide(strict, POLICY, record(verified_at=None), gone)
    assert isinstance(rejected, plans.Refuse)
    assert rejected.refusal is plans.Refusal.CONTINUITY_UNAVAILABLE


def test_the_stricter_of_policy_and_call_applies() -> None:
    """A request can ask for more continuity than the policy, never for less."""
    policy = replace(POLICY, min_continuity=Continuity.MEMORY)
    paused = record(state=State.PAUSED, pause_depth=PauseDepth.STOPPED)
    easy = Wish(Mode.CONTINUE, min_continuity=Continuity.NONE)
    assert isinstance(decide(easy, policy, paused), plans.Refuse)
    assert isinstance(decide(easy, POLICY, paused), plans.TryRungs)


def test_starts_in_flight_are_joined_or_waited_for() -> None:
    """Rule 2, mode by mode."""
    assert isinstance(decide(CONTINUE, POLICY, starting()), plans.Join)
    fresh = Wish(Mode.FRESH, "f")
    assert isinstance(decide(fresh, POLICY, starting()), plans.AwaitTransition)
    leading_fresh = starting(wish=wishes.dump(fresh))
    assert isinstance(decide(fresh, POLICY, leading_fresh), plans.Join)
    other = Wish(Mode.FRESH, "g")
    assert isinstance(decide(other, POLICY, leading_fresh), plans.AwaitTransition)
    assert isinstance(decide(CONTINUE, POLICY, leading_fresh), plans.Join)
    rejected = decide(Wish(Mode.FAIL_IF_LIVE), POLICY, starting())
    assert isinstance(rejected, plans.Refuse)


@pytest.mark.parametrize("column", ["lease_until", "deadline"])
def test_a_transition_whose_owner_is_late_is_taken_over(column: str) -> None:
    """Rule 4: either its lease or its deadline has passed."""
    assert isinstance(decide(CONTINUE, POLICY, starting(**{column: NOW})), plans.TakeOver)


def test_an_abandoned_start_is_continued_also_by_fail_if_live() -> None:
    """It never came up and no call waits for it, so FAIL_IF_LIVE does not count it as live."""
    left = starting(decision_id=None, lease_until=NOW)
    for mode in (Mode.CONTINUE, Mode.FAIL_IF_LIVE, Mode.FRESH):
        assert isinstance(decide(Wish(mode), POLICY, left), plans.TakeOver)


def test_a_policy_that_keeps_nothing_makes_every_start_fresh() -> None:
    """EPHEMERAL is the behaviour before Roost. A mode in the request still applies."""
    policy = replace(POLICY, persistence=policies.Persistence.EPHEMERAL)
    assert isinstance(decide(Wish(Mode.UNSPECIFIED), policy, record()), plans.Replace)
    assert isinstance(decide(CONTINUE, policy, record()), plans.Use)


times = st.one_of(
    st.none(), st.integers(-100, 100).map(lambda seconds: NOW + timedelta(seconds=seconds))
)
containers = st.builds(
    container,
    container_id=st.sampled_from([None, "m1"]),
    boot_id=st.sampled_from([None, "boot"]),
    start_time=times,
    destroy_time=times,
    state=st.sampled_from(ContainerState),
)
in_flight = {
    State.STARTING: [Transition.START],
    State.PAUSING: [Transition.PAUSE],
    State.ENDING: [Transition.END, Transition.PURGE, Transition.REPLACE],
}


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any row that the database's checks allow."""
    state = draw(st.sampled_from(State))
    transition = draw(st.sampled_from(in_flight.get(state, [None])))
    wanted = Wish(draw(st.sampled_from(Mode)), draw(st.sampled_from([None, "f", "g"])))
    return Record(
        session(
            state=state,
            transition=transition,
            prior_state=draw(st.sampled_from([None, State.ACTIVE, State.PAUSED])),
            lease_until=draw(times),
            deadline=draw(times),
            decision_id=draw(st.sampled_from([None, UUID(int=7)])),
            wish=wishes.dump(wanted),
            pause_depth=draw(st.sampled_from([None, *PauseDepth])),
            loss_untold=draw(st.booleans()),
            verified_at=draw(times),
        ),
        draw(st.one_of(st.none(), containers)),
        NOW,
    )


wanted = st.builds(
    Wish,
    st.sampled_from(Mode),
    st.sampled_from([None, "f", "g"]),
    st.sampled_from([None, *Continuity]),
)
evidences = st.one_of(
    st.none(),
    st.builds(
        Evidence,
        st.sampled_from(Presence),
        st.sampled_from(ContainerState),
        st.sampled_from([None, True, False]),
        st.sampled_from([None, True, False]),
    ),
)


@given(wanted, st.one_of(st.none(), records()), evidences)
def test_the_decision_is_total_and_deterministic(
    wish: Wish, facts: Record | None, evidence: Evidence | None
) -> None:
    """For any facts there is one plan, with a rule and an explanation."""
    plan = decide(wish, POLICY, facts, evidence)
    assert plan == decide(wish, POLICY, facts, evidence)
    assert plan.rule
    assert plan.because


@given(wanted, records(), evidences)
def test_a_reused_session_runs_and_gives_what_was_asked(
    wish: Wish, facts: Record, evidence: Evidence | None
) -> None:
    """REUSED implies ACTIVE, no transition, and at least the continuity that was asked for."""
    plan = decide(wish, POLICY, facts, evidence)
    if isinstance(plan, plans.Use):
        assert facts.session.state is State.ACTIVE
        assert facts.session.transition is None
        assert wish.min_continuity is None or plan.continuity >= wish.min_continuity
    if isinstance(plan, plans.TryRungs) and wish.min_continuity is not None:
        assert all(BEST_OF[rung] >= wish.min_continuity for rung in plan.rungs)


@given(wanted, records())
def test_an_unknown_provider_never_leads_to_a_new_container(wish: Wish, facts: Record) -> None:
    """Rule 7: an error changes nothing. Only a FRESH start replaces a container."""
    plan = decide(wish, POLICY, facts, Evidence(Presence.UNKNOWN, preview_answered=True))
    if facts.session.state is State.ACTIVE and wish.mode is not Mode.FRESH:
        assert not isinstance(plan, plans.TryRungs | plans.Open | plans.Replace)


@given(wanted, records(), evidences)
def test_a_transition_in_flight_is_never_worked_against(
    wish: Wish, facts: Record, evidence: Evidence | None
) -> None:
    """A transition in flight is joined, waited for or taken over, nothing else."""
    if facts.session.transition is None:
        return
    plan = decide(wish, POLICY, facts, evidence)
    assert isinstance(plan, plans.Join | plans.AwaitTransition | plans.TakeOver | plans.Refuse)
    if isinstance(plan, plans.TakeOver):
        assert facts.lapsed
