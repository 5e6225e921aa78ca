"""The order in which checkpoints are restored, which may be deleted, and their part in starts."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from itertools import product
from uuid import UUID

import pytest

from session_service.domain import plans
from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.checkpoint import (
    Checkpoint,
    CheckpointState,
    Kind,
    Place,
    Reason,
    beyond,
    in_order,
    kind_for,
    supports,
)
from session_service.domain.decision import dump_attempts, load_attempts
from session_service.domain.evidence import Evidence, Presence
from session_service.domain.ladder import BEST_OF, decide, restorable
from session_service.domain.session import (
    Attempt,
    AttemptResult,
    ContainerState,
    Continuity,
    Mode,
    PauseDepth,
    Record,
    Rung,
    expected_continuity,
)
from session_service.domain.spec import Carrier
from session_service.domain.states import State, Transition
from session_service.domain.wish import Recreate, Wish
from tests.unit.test_ladder import NOW, POLICY, container, record, session

READY, FAILED = CheckpointState.READY, CheckpointState.FAILED


def checkpoint(number: int, parent: int = 0, **changes: object) -> Checkpoint:
    """A READY checkpoint whose id is its number."""
    made = Checkpoint(
        UUID(int=number), "t", "p", "u", "default", number, UUID(int=1000), 1,
        UUID(int=parent) if parent else None, Kind.APPLICATION, READY, Reason.REQUESTED, "",
        pinned=False, app="app", spec="{}", fingerprint="f", size_bytes=1, stored_bytes=9,
        sha256=b"", place=Place.DATABASE, object=None, failure=None, decision_id=None,
        lease_until=None, create_time=NOW + timedelta(seconds=number), ready_time=NOW,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # any of its fields


def order(head: int, *checkpoints: Checkpoint) -> list[int]:
    """The numbers in the order in which a restore tries them."""
    return [item.number for item in in_order(UUID(int=head), checkpoints)]


def test_the_heads_ancestors_are_tried_first_and_then_the_newest() -> None:
    """After a rollback from 4 to 2 the checkpoints 3 and 4 are tried last."""
    made = [checkpoint(number, number - 1) for number in range(1, 5)]
    assert order(4, *made) == [4, 3, 2, 1]
    assert order(2, *made) == [2, 1, 4, 3]
    assert order(5, *made, checkpoint(5, 2)) == [5, 2, 1, 4, 3]


def test_a_checkpoint_that_is_not_ready_is_never_tried() -> None:
    """Nor is an unknown head. Where the line of parents breaks, the newest follow."""
    made = [checkpoint(1), checkpoint(2, 1, state=FAILED), checkpoint(3, 2)]
    assert order(3, *made) == [3, 1]
    assert order(2, *made) == [3, 1]
    assert order(99, *made) == [3, 1]
    assert in_order(None, []) == ()


def test_a_cycle_of_parents_ends() -> None:
    """No database check forbids a cycle of parents: each checkpoint is tried once."""
    assert order(1, checkpoint(1, 2), checkpoint(2, 1)) == [1, 2]


def test_retention_keeps_the_newest_the_pinned_and_the_needed() -> None:
    """Pinned ones are not counted. At least one is kept whatever the limit is."""
    made = [checkpoint(number, pinned=number == 1) for number in range(1, 8)]
    needed = frozenset({UUID(int=2)})
    assert [item.number for item in beyond(made, 3, needed)] == [4, 3]
    assert [item.number for item in beyond(made, 0, frozenset())] == [6, 5, 4, 3, 2]
    assert beyond(made, 99, frozenset()) == ()


def test_the_spec_decides_how_state_is_saved() -> None:
    """A state hook takes precedence over a volume."""
    hook, mount = {"state_hook": {"http_path": "/s"}}, {"mounts": [{"volume_id": "v"}]}
    assert kind_for({**hook, **mount}) is Kind.APPLICATION
    assert kind_for(mount) is Kind.VOLUME
    assert kind_for({}) is None
    assert supports(mount, Kind.VOLUME)
    assert not supports(mount, Kind.APPLICATION)


# --- the ladder ----------------------------------------------------------------------------------

SAVED = (checkpoint(1),)
WITHOUT = container(destroy_time=NOW)


def paused(**changes: object) -> Record:
    """A session that was saved and is paused without a container."""
    values: dict[str, object] = {
        "state": State.PAUSED,
        "pause_depth": PauseDepth.CHECKPOINT,
        "checkpoint_id": UUID(int=1),
    }
    return record(WITHOUT, **{**values, **changes})


def plan_of(
    where: Record, checkpoints: tuple[Checkpoint, ...], least: Continuity | None = None
) -> plans.Decision:
    """The plan of a plain start."""
    return decide(Wish(min_continuity=least), POLICY, where, checkpoints=checkpoints)


def test_a_session_without_a_container_is_restored_before_it_is_created() -> None:
    """Restored from a READY checkpoint. Without one, CREATE is the only rung."""
    plan = plan_of(paused(), SAVED)
    assert isinstance(plan, plans.TryRungs)
    assert (plan.rule, plan.rungs) == ("RESTORE_FIRST", (Rung.RESTORE, Rung.CREATE))
    for nothing in ((), (checkpoint(1, state=FAILED),)):
        plan = plan_of(paused(), nothing)
        assert isinstance(plan, plans.TryRungs)
        assert plan.rungs == (Rung.CREATE,)


def test_a_container_comes_before_a_checkpoint() -> None:
    """The rungs: memory, then files, then the checkpoint."""
    suspended = record(None, state=State.PAUSED, pause_depth=PauseDepth.SUSPENDED)
    plan = plan_of(suspended, SAVED)
    assert isinstance(plan, plans.TryRungs)
    assert plan.rungs == (Rung.RESUME, Rung.RESTORE, Rung.CREATE)


def test_an_unwanted_container_does_not_count_as_a_container() -> None:
    """Its state is saved and it is not wanted any more: it is not resumed."""
    plan = plan_of(record(container(wanted=False), state=State.PAUSED), SAVED)
    assert isinstance(plan, plans.TryRungs)
    assert plan.rungs[0] is Rung.RESTORE


@pytest.mark.parametrize(
    ("least", "rungs"),
    [
        (None, (Rung.RESTORE, Rung.CREATE)),
        (Continuity.NONE, (Rung.RESTORE, Rung.CREATE)),
        (Continuity.CHECKPOINT, (Rung.RESTORE,)),
        (Continuity.FILESYSTEM, ()),
        (Continuity.MEMORY, ()),
    ],
)
def test_min_continuity_leaves_the_rungs_that_can_provide_it(
    least: Continuity | None, rungs: tuple[Rung, ...]
) -> None:
    """The start is rejected where no rung can."""
    plan = plan_of(paused(), SAVED, least)
    if rungs:
        assert isinstance(plan, plans.TryRungs)
        assert plan.rungs == rungs
    else:
        assert isinstance(plan, plans.Refuse)
        assert plan.refusal is plans.Refusal.CONTINUITY_UNAVAILABLE


def test_the_expected_continuity_needs_no_read_of_checkpoints() -> None:
    """The session's row records whether it has one."""
    assert expected_continuity(paused().session, WITHOUT) is Continuity.CHECKPOINT
    assert expected_continuity(session(), WITHOUT) is Continuity.NONE


def test_a_rollback_restores_one_checkpoint_and_joins_no_transition() -> None:
    """For a session that runs or is paused. Behind a transition in flight it waits its turn."""
    wish = Wish(Mode.CONTINUE, checkpoint_id=UUID(int=1))
    for where in (record(), paused()):
        plan = decide(wish, POLICY, where, checkpoints=SAVED)
        assert isinstance(plan, plans.TryRungs)
        assert plan.rungs == (Rung.RESTORE,)
    flight = record(
        None,
        state=State.STARTING,
        transition=Transition.START,
        lease_until=NOW + timedelta(seconds=5),
        deadline=NOW + timedelta(seconds=50),
        decision_id=UUID(int=5),
        wish=wishes.dump(Wish()),
    )
    assert isinstance(decide(wish, POLICY, flight), plans.AwaitTransition)
    assert isinstance(decide(wish, POLICY, record(state=State.ENDED)), plans.Refuse)


def test_the_ladder_is_total_with_checkpoints_too() -> None:
    """Every state, evidence and mode gives a plan and never an exception."""
    evidences = [
        None,
        Evidence(Presence.ABSENT),
        Evidence(Presence.UNKNOWN, preview_answered=False),
        Evidence(Presence.PRESENT, ContainerState.STARTED, memory_intact=True),
        Evidence(Presence.PRESENT, ContainerState.SUSPENDED),
    ]
    lists: list[tuple[Checkpoint, ...]] = [(), SAVED, (checkpoint(1, state=FAILED),)]
    wanted = [None, *Continuity]
    states = [State.ACTIVE, State.PAUSED, State.ENDED]
    containers = [container(), WITHOUT, container(wanted=False), container(start_time=None)]
    policy = policies.Policy()
    for state, where, evidence, checkpoints, least, depth in product(
        states, containers, evidences, lists, wanted, [None, *PauseDepth]
    ):
        seen = record(where, state=state, pause_depth=depth, verified_at=None)
        plan = decide(Wish(min_continuity=least), policy, seen, evidence, checkpoints=checkpoints)
        assert plan.rule
        if isinstance(plan, plans.TryRungs):
            assert (Rung.RESTORE in plan.rungs) <= restorable(checkpoints)
            assert all(least is None or BEST_OF[rung] >= least for rung in plan.rungs)


# --- forms in rows -------------------------------------------------------------------------------


def test_a_wish_is_read_back_as_it_was_written() -> None:
    """With and without each of its parts; rows of earlier versions are read too."""
    one, two = UUID(int=1), UUID(int=2)
    by = [Recreate(3, "{}", "REQUEST", carrier) for carrier in Carrier]
    for recreate, checkpoint_id, saved_id in product([None, *by], [None, one], [None, two]):
        wish = Wish(Mode.FRESH, "h", Continuity.MEMORY, recreate, checkpoint_id, saved_id)
        expected = wish if checkpoint_id else replace(wish, saved_id=None)
        assert wishes.load(wishes.dump(wish)) == expected
    assert wishes.load('["CONTINUE", null, 4]') == Wish(min_continuity=Continuity.MEMORY)
    before = wishes.load('["CONTINUE", "h", null, [3, "{}", "REQUEST"]]')
    assert before == Wish(Mode.CONTINUE, "h", recreate=Recreate(3, "{}", "REQUEST"))


def test_earlier_versions_read_a_wish_to_recreate_as_a_plain_one() -> None:
    """They read the first version's three parts, and destroy nothing when they take over."""
    for carrier in Carrier:
        wish = Wish(Mode.CONTINUE, "h", None, Recreate(3, "{}", "REQUEST", carrier))
        mode, spec_hash, least = json.loads(wishes.dump(wish))
        assert (Mode(mode), least) == (Mode.CONTINUE, None)
        assert spec_hash != "h", "they do not join it either"


def test_a_later_versions_reason_is_read_as_none() -> None:
    """A reason unknown to an older replica does not keep a session from being restored."""
    assert Reason("PHASE_OF_THE_MOON") is Reason.UNSPECIFIED


def test_an_attempts_checkpoint_is_stored_where_there_was_one() -> None:
    """Rows of earlier versions without it are read as before."""
    tried = (
        Attempt(Rung.RESTORE, AttemptResult.FAILED, "CHECKPOINT_CORRUPT", 3, 7),
        Attempt(Rung.CREATE, AttemptResult.SUCCEEDED, "CREATED", 5),
    )
    assert load_attempts(dump_attempts(tried)) == tried
    assert load_attempts('[["CREATE", "SUCCEEDED", "CREATED", 5]]') == tried[1:]
