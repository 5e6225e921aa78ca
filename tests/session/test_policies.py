"""Policies: set by project, capped by tier, lowered by a request; and their effect everywhere."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import policy_service_pb2 as rpc_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as session_rpc_pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from session_service.cli import tier as tier_command
from session_service.domain.next_action import Action
from session_service.storage import policy as stored
from tests.cases import each
from tests.container.harness import APP, TOKEN, failing
from tests.eventually import eventually
from tests.session.harness import IMAGE, TIMEOUT, World, key, request_id, spec, world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from local.fly.emulator import Emulator

pytestmark = pytest.mark.replicas(1)

Policy = pb.Policy
EPHEMERAL = Policy.PERSISTENCE_EPHEMERAL
REUSE = Policy.PERSISTENCE_REUSE
HIBERNATE = Policy.PERSISTENCE_HIBERNATE
REFUSE = Policy.ON_FINGERPRINT_CHANGE_REFUSE
RECREATE = Policy.ON_FINGERPRINT_CHANGE_RECREATE_KEEPING_FILES


def policies(roost: World) -> PolicyServiceStub:
    """A client of the first replica's policies."""
    return PolicyServiceStub(roost.one.channel)


async def put(roost: World, *paths: str, etag: str = "", **values: Any) -> rpc_pb.ProjectPolicy:
    """Set the project's policy. Any: fields of every type."""
    request = rpc_pb.UpdateProjectPolicyRequest(
        project_id="nest",
        policy=Policy(**values),
        update_mask=FieldMask(paths=paths) if paths else None,
        etag=etag,
    )
    answer = await policies(roost).UpdateProjectPolicy(request, timeout=TIMEOUT)
    return answer.project_policy


async def get(roost: World) -> rpc_pb.ProjectPolicy:
    """The project's policy."""
    request = rpc_pb.GetProjectPolicyRequest(project_id="nest")
    return (await policies(roost).GetProjectPolicy(request, timeout=TIMEOUT)).project_policy


async def set_tier(roost: World, tier: str) -> None:
    """Give the tenant a tier, as the operator's command does."""
    database = roost.one.running.database
    await stored.set_tier(database, "default", tier, timedelta(minutes=1))
    await roost.one.running.policies.propagate()


# --- the service -------------------------------------------------------------------------------


async def test_a_project_that_has_set_nothing_has_the_operators_default(roost: World) -> None:
    """HIBERNATE, uncapped, every source DEFAULT, and an etag for the first update."""
    found = await get(roost)
    assert (found.project_id, found.tier, found.etag) == ("nest", "paid", "0")
    assert found.effective_policy.persistence == HIBERNATE
    assert set(found.effective_policy.sources.values()) == {pb.POLICY_SOURCE_DEFAULT}
    assert found.policy == Policy()
    assert not found.HasField("update_time")


async def test_an_update_changes_only_the_named_fields(roost: World) -> None:
    """AIP-134: without a mask the fields with a value are set; a masked path without a value is
    unset; `*` stands for all fields.
    """
    first = await put(roost, persistence=REUSE, idle_timeout=Duration(seconds=60))
    assert first.policy.persistence == REUSE
    second = await put(roost, keep_checkpoints=3)
    assert (second.policy.persistence, second.policy.keep_checkpoints) == (REUSE, 3)
    assert second.effective_policy.sources["persistence"] == pb.POLICY_SOURCE_PROJECT
    assert second.effective_policy.sources["deepen_after"] == pb.POLICY_SOURCE_DEFAULT
    third = await put(roost, "persistence", "recover_at_once", recover_at_once=True)
    assert third.policy.persistence == Policy.PERSISTENCE_UNSPECIFIED
    assert third.effective_policy.persistence == HIBERNATE
    assert (third.policy.recover_at_once, third.policy.keep_checkpoints) == (True, 3)
    off = await put(roost, "recover_at_once")
    assert not off.effective_policy.recover_at_once
    assert off.effective_policy.sources["recover_at_once"] == pb.POLICY_SOURCE_PROJECT
    last = await put(roost, "*", persistence=EPHEMERAL)
    assert last.policy == Policy(persistence=EPHEMERAL)
    assert last == await get(roost)
    assert len({each.etag for each in (first, second, third, off, last)}) == 5


async def test_an_old_etag_fails_and_changes_nothing(roost: World) -> None:
    """ABORTED, with the current etag; also for the later of two concurrent first updates."""
    first = await put(roost, etag="0", persistence=REUSE)
    for etag in ("0", "ff"):
        failure = await failing(put(roost, etag=etag, persistence=EPHEMERAL))
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert failure.metadata["etag"] == first.etag
    assert (await get(roost)).policy.persistence == REUSE
    assert (await put(roost, etag=first.etag, persistence=EPHEMERAL)).etag != first.etag


async def test_a_repeated_update_counts_once(roost: World) -> None:
    """The same request id returns the current policy; another body with it is rejected."""
    stub, once = policies(roost), request_id()
    request = rpc_pb.UpdateProjectPolicyRequest(
        request_id=once, project_id="nest", policy=Policy(persistence=REUSE)
    )
    first = await stub.UpdateProjectPolicy(request, timeout=TIMEOUT)
    await put(roost, persistence=EPHEMERAL)
    again = await stub.UpdateProjectPolicy(request, timeout=TIMEOUT)
    assert again.project_policy.policy.persistence == EPHEMERAL
    assert again.project_policy.etag != first.project_policy.etag
    request.policy.persistence = HIBERNATE
    failure = await failing(stub.UpdateProjectPolicy(request, timeout=TIMEOUT))
    assert failure.reason == "REQUEST_ID_REUSED"


async def test_an_update_without_a_mask_takes_a_flag_that_is_false_for_a_value(
    roost: World,
) -> None:
    """The message records presence for it. `*` unsets fields that the message lacks."""
    await put(roost, recover_at_once=True, checkpoint_on_stop=True)
    off = await put(roost, recover_at_once=False)
    assert off.policy.HasField("recover_at_once")
    assert not off.policy.recover_at_once
    assert off.policy.checkpoint_on_stop
    assert off.effective_policy.sources["recover_at_once"] == pb.POLICY_SOURCE_PROJECT
    unset = await put(roost, "*", persistence=REUSE)
    assert not unset.policy.HasField("recover_at_once")
    assert unset.effective_policy.HasField("recover_at_once")
    assert unset.effective_policy.sources["recover_at_once"] == pb.POLICY_SOURCE_DEFAULT


SPANS = {
    "idle_timeout": 31_622_400,
    "deepen_after": 31_622_400,
    "expire_after": 316_224_000,
    "grace_period": 2_592_000,
    "max_lifetime": 316_224_000,
    "checkpoint_every": 316_224_000,
    "checkpoint_after": 316_224_000,
}


async def test_no_duration_is_longer_than_a_timestamp_can_represent(roost: World) -> None:
    """The limit is ten years in every call that takes a policy; the error names the field."""
    spans = [each.name for each in Policy.DESCRIPTOR.fields if "Duration" in _type_of(each)]
    assert set(SPANS) == set(spans)
    # Any: values for fields of every type.
    longest: dict[str, Any] = {name: Duration(seconds=seconds) for name, seconds in SPANS.items()}
    assert (await put(roost, **longest)).policy == Policy(**longest)
    for name, seconds in SPANS.items():
        over = Duration(seconds=seconds, nanos=1000)
        for span in (over, Duration(seconds=2**40), Duration(seconds=-1), Duration(nanos=-1)):
            wrong: dict[str, Any] = {name: span}
            failure = await failing(put(roost, **wrong))
            assert (failure.reason, failure.fields) == ("INVALID_FIELD", (f"policy.{name}",))
            asked = await failing(roost.one.start(policy=Policy(**wrong)))
            assert asked.fields == (f"policy.{name}",)
    assert (await get(roost)).policy == Policy(**longest)


def _type_of(field: Any) -> str:
    """The name of a message field's type. Any: protobuf's own descriptor."""
    return "" if field.message_type is None else str(field.message_type.full_name)


@each(
    ("field", "request_"),
    [
        ("project_id", rpc_pb.UpdateProjectPolicyRequest(policy=Policy(persistence=REUSE))),
        ("policy", rpc_pb.UpdateProjectPolicyRequest(project_id="p")),
        ("policy", rpc_pb.UpdateProjectPolicyRequest(project_id="p", policy=Policy())),
        (
            "policy.persistence",
            rpc_pb.UpdateProjectPolicyRequest(project_id="p", policy=Policy(persistence=77)),  # type: ignore[arg-type]
        ),
        (
            "policy.grace_period",
            rpc_pb.UpdateProjectPolicyRequest(
                project_id="p", policy=Policy(grace_period=Duration(seconds=9**12))
            ),
        ),
        (
            "policy.keep_checkpoints",
            rpc_pb.UpdateProjectPolicyRequest(project_id="p", policy=Policy(keep_checkpoints=-1)),
        ),
        (
            "policy.checkpoint_every",
            rpc_pb.UpdateProjectPolicyRequest(
                project_id="p", policy=Policy(checkpoint_every=Duration(nanos=900_000_000))
            ),
        ),
        (
            "policy.spec.image",
            rpc_pb.UpdateProjectPolicyRequest(
                project_id="p", policy=Policy(spec=container_pb.ContainerSpec())
            ),
        ),
        (
            "update_mask",
            rpc_pb.UpdateProjectPolicyRequest(
                project_id="p", policy=Policy(), update_mask=FieldMask(paths=["colour"])
            ),
        ),
        (
            "request_id",
            rpc_pb.UpdateProjectPolicyRequest(
                project_id="p", policy=Policy(persistence=REUSE), request_id="x"
            ),
        ),
    ],
)
async def test_a_wrong_update_names_its_field(
    roost: World, field: str, request_: rpc_pb.UpdateProjectPolicyRequest
) -> None:
    """INVALID_FIELD; the error names an unknown path."""
    failure = await failing(policies(roost).UpdateProjectPolicy(request_, timeout=TIMEOUT))
    assert failure.reason == "INVALID_FIELD"
    assert failure.fields == (field,)
    if field == "update_mask":
        assert "'colour'" in failure.message


async def test_containers_are_created_from_the_projects_spec(roost: World) -> None:
    """It is used where a start gives no spec. Only the names of its environment are shown."""
    made = await put(roost, spec=spec(env={"PASSWORD": "hunter2hunter2"}))
    assert "hunter2hunter2" not in str(made)
    assert dict(made.policy.spec.env) == {"PASSWORD": ""}
    session = (await roost.one.start()).session
    assert session.policy.sources["spec"] == pb.POLICY_SOURCE_PROJECT
    explicit = (await roost.one.start("crane", spec=spec())).session
    assert explicit.policy.sources["spec"] == pb.POLICY_SOURCE_REQUEST
    assert explicit.fingerprint != session.fingerprint


# --- tiers and requests ------------------------------------------------------------------------


@pytest.mark.replicas(2)
async def test_a_tier_caps_the_policy_of_the_project(
    roost: World,
) -> None:
    """Every start is fresh, the source is TIER, and a stop ends the session."""
    await put(roost, persistence=HIBERNATE, idle_timeout=Duration(seconds=9))
    await set_tier(roost, "free")
    first = await roost.one.start()
    policy = first.session.policy
    assert policy.persistence == EPHEMERAL
    assert policy.sources["persistence"] == pb.POLICY_SOURCE_TIER
    assert policy.sources["idle_timeout"] == pb.POLICY_SOURCE_PROJECT
    second = await roost.two.start()
    assert second.outcome == pb.START_OUTCOME_CREATED
    assert second.session.predecessor_session_id == first.session.session_id
    stopped = await roost.one.stop(second.session.session_id)
    assert stopped.end_reason == pb.END_REASON_EPHEMERAL


async def test_a_request_can_only_ask_for_less(roost: World) -> None:
    """A lower value applies with source REQUEST; a higher one is capped by the project's."""
    await put(roost, idle_timeout=Duration(seconds=600), persistence=REUSE)
    asked = Policy(idle_timeout=Duration(seconds=60), persistence=HIBERNATE)
    session = (await roost.one.start(policy=asked)).session
    assert session.policy.idle_timeout.seconds == 60
    assert session.policy.sources["idle_timeout"] == pb.POLICY_SOURCE_REQUEST
    assert session.policy.persistence == REUSE
    assert session.policy.sources["persistence"] == pb.POLICY_SOURCE_PROJECT


@pytest.mark.replicas(2)
async def test_a_request_can_ask_for_a_flag_to_be_off(roost: World) -> None:
    """False is less. A field without presence in the message is named in the mask."""
    await put(roost, recover_at_once=True, checkpoint_on_stop=True)
    kept = (await roost.one.start("crane", policy=Policy(idle_timeout=Duration(seconds=9)))).session
    assert (kept.policy.recover_at_once, kept.policy.checkpoint_on_stop) == (True, True)
    mask = FieldMask(paths=["checkpoint_on_stop"])
    off = await roost.one.start(policy=Policy(recover_at_once=False), policy_mask=mask)
    policy = off.session.policy
    assert (policy.recover_at_once, policy.checkpoint_on_stop) == (False, False)
    for name in ("recover_at_once", "checkpoint_on_stop"):
        assert policy.sources[name] == pb.POLICY_SOURCE_REQUEST
    # It stays, also over a start without a policy, and on the hot path.
    assert (await roost.two.start()).session.policy == policy
    on = Policy(recover_at_once=True, checkpoint_on_stop=True)
    assert (await roost.two.start(policy=on)).session.policy.recover_at_once
    wrong = await failing(roost.one.start(policy_mask=FieldMask(paths=["idle_timeout"])))
    assert (wrong.reason, wrong.fields) == ("INVALID_FIELD", ("policy_mask",))


async def test_a_requests_policy_stays_until_a_start_changes_it(roost: World) -> None:
    """Also after a change of the project's policy, and the start stays on the hot path."""
    asked = Policy(idle_timeout=Duration(seconds=60))
    await roost.one.start(policy=asked)
    again = await roost.one.start()
    assert again.session.policy.idle_timeout.seconds == 60
    await put(roost, idle_timeout=Duration(seconds=30))
    assert (await roost.one.start()).session.policy.idle_timeout.seconds == 30
    await put(roost, idle_timeout=Duration(seconds=600))
    assert (await roost.one.start()).session.policy.idle_timeout.seconds == 60
    other = await roost.one.start(policy=Policy(idle_timeout=Duration(seconds=90)))
    assert other.session.policy.idle_timeout.seconds == 90
    assert other.outcome == pb.START_OUTCOME_REUSED


async def test_the_command_shows_and_sets_a_tenants_tier(
    roost: World, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """`python -m session_service tier`; live sessions get it at once. Any: pytest's own type."""
    import asyncio

    session = (await roost.one.start()).session
    monkeypatch.setenv("ROOST_DATABASE_URL", database_url)
    assert await asyncio.to_thread(tier_command.main, ["get", "default"]) == 0
    assert capsys.readouterr().out == "default: paid\n"
    assert await asyncio.to_thread(tier_command.main, ["set", "default", "free"]) == 0
    assert capsys.readouterr().out.startswith("default: free, 1 live session")
    shown = await roost.one.get(session.session_id)
    assert shown.policy.expire_after.seconds == 600
    assert shown.policy.sources["expire_after"] == pb.POLICY_SOURCE_TIER
    assert shown.policy.persistence == HIBERNATE, "a lower tier ends no live session"
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_CREATED


# --- persistence -------------------------------------------------------------------------------


async def test_ephemeral_is_fresh_at_every_start_and_over_at_a_stop(roost: World) -> None:
    """As before Roost, by configuration. A start mode in the request still applies."""
    await put(roost, persistence=EPHEMERAL)
    first = (await roost.one.start()).session
    await roost.click_twice(first)
    assert (await roost.one.start(mode=pb.START_MODE_CONTINUE)).session.session_id == (
        first.session_id
    )
    second = await roost.one.start()
    assert second.outcome == pb.START_OUTCOME_CREATED
    assert await roost.counter(second.session) == "0"
    decision = (await roost.one.decisions(second.session.session_id))[0]
    assert decision.rule == "FRESH_BY_POLICY"
    stopped = await roost.one.stop(second.session.session_id)
    assert (stopped.state, stopped.end_reason) == (
        pb.Session.STATE_ENDED,
        pb.END_REASON_EPHEMERAL,
    )
    assert (await roost.one.stop(stopped.session_id)).state == pb.Session.STATE_ENDED


@pytest.mark.replicas(2)
async def test_reuse_keeps_a_session_only_while_it_runs(roost: World) -> None:
    """Two starts give one session; a stop ends it; a pause is rejected with the reason."""
    await put(roost, persistence=REUSE)
    first = (await roost.one.start()).session
    assert (await roost.two.start()).outcome == pb.START_OUTCOME_REUSED
    failure = await failing(roost.one.pause(first.session_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "POLICY_FORBIDS",
    )
    assert "REUSE" in failure.message
    stopped = await roost.one.stop(first.session_id)
    assert stopped.state == pb.Session.STATE_ENDED
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_CREATED


@asynccontextmanager
async def quickly_idle(emulator: Emulator, database_url: str) -> AsyncGenerator[World]:
    """A replica with a short idle timeout."""
    async with world(
        emulator,
        database_url,
        idle_timeout=timedelta(seconds=0.6),
        idle_warning=timedelta(seconds=0.2),
    ) as running:
        yield running


async def until_done(roost: World, action: Action) -> None:
    """Run due passes until one did this."""

    async def done() -> bool:
        return (await roost.one.running.background.due_pass.settle()).actions[action] > 0

    assert await eventually(done), f"no due pass did {action}"


@pytest.mark.parametrize("persistence", [EPHEMERAL, REUSE])
async def test_an_idle_session_that_a_stop_would_end_is_ended(
    emulator: Emulator, database_url: str, persistence: pb.Policy.Persistence.ValueType
) -> None:
    """As a stop ends it, with its grace period."""
    async with quickly_idle(emulator, database_url) as roost:
        await put(roost, persistence=persistence)
        session = (await roost.one.start()).session
        await until_done(roost, Action.PAUSE)
        over = await roost.one.get(session.session_id)
        assert (over.state, over.end_reason) == (
            pb.Session.STATE_ENDED,
            pb.END_REASON_EPHEMERAL,
        )
        assert await roost.committed("destroy", session.session_id) == 0


async def test_with_nothing_set_a_stop_pauses(roost: World) -> None:
    """HIBERNATE."""
    session = (await roost.one.start()).session
    assert (await roost.one.stop(session.session_id)).state == pb.Session.STATE_PAUSED


# --- changes of live sessions ------------------------------------------------------------------


async def test_durations_apply_at_once_and_a_lower_persistence_ends_no_live_session(
    emulator: Emulator, database_url: str
) -> None:
    """A running session gets the new idle timeout at once. Lowered to EPHEMERAL, it is still
    paused, and only its next start replaces it.
    """
    async with quickly_idle(emulator, database_url) as roost:
        await put(roost, idle_timeout=Duration(seconds=3600))
        session = (await roost.one.start()).session
        assert session.policy.idle_timeout.seconds == 3600
        await put(roost, persistence=EPHEMERAL, idle_timeout=Duration(nanos=500_000_000))
        shown = await roost.one.get(session.session_id)
        assert shown.policy.idle_timeout.nanos == 500_000_000
        assert shown.policy.persistence == HIBERNATE
        assert shown.etag != session.etag
        await until_done(roost, Action.PAUSE)
        assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSED
        fresh = await roost.one.start()
        assert fresh.outcome == pb.START_OUTCOME_CREATED
        assert fresh.session.policy.persistence == EPHEMERAL


async def test_a_session_raised_to_hibernate_is_not_ended_when_idle(
    emulator: Emulator, database_url: str
) -> None:
    """Raised from REUSE to HIBERNATE while it runs, it is paused when idle and not ended."""
    async with quickly_idle(emulator, database_url) as roost:
        await put(roost, persistence=REUSE)
        session = (await roost.one.start()).session
        await put(roost, persistence=HIBERNATE)
        assert (await roost.one.get(session.session_id)).policy.persistence == HIBERNATE
        await until_done(roost, Action.PAUSE)
        assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSED


@pytest.mark.replicas(2)
async def test_a_lowered_persistence_applies_from_the_next_start_also_on_the_hot_path(
    roost: World,
) -> None:
    """A session that was verified a moment ago is not reused against the policy."""
    first = await roost.one.start()
    assert (await roost.two.start()).outcome == pb.START_OUTCOME_REUSED
    await put(roost, persistence=EPHEMERAL)
    fresh = await roost.two.start()
    assert fresh.outcome == pb.START_OUTCOME_CREATED
    assert fresh.session.predecessor_session_id == first.session.session_id


@pytest.mark.replicas(2)
async def test_a_policy_that_a_dead_replica_did_not_spread_is_spread_by_another(
    roost: World,
) -> None:
    """The policy's row was written and no session updated: one pass updates each of them once."""
    session = (await roost.one.start()).session
    database = roost.one.running.database
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO policies (tenant, project_id, setting, spread_until)"
            " VALUES ('default', 'nest', '{\"idle_timeout\": 77}', now() + interval '1 minute')"
        )
    assert (await roost.one.get(session.session_id)).policy.idle_timeout.seconds != 77
    assert await roost.two.running.policies.propagate() == 1
    assert (await roost.one.get(session.session_id)).policy.idle_timeout.seconds == 77
    assert await roost.two.running.policies.propagate() == 0


async def test_a_policy_is_spread_to_live_sessions_in_batches(roost: World) -> None:
    """Three batches of copies of one session's row, and the session itself."""
    session = (await roost.one.start()).session
    async with roost.one.running.database.connection() as connection:
        await connection.execute(
            "CREATE TEMP TABLE copy AS SELECT * FROM sessions WHERE session_id = %s",
            [session.session_id],
        )
        await connection.execute(
            "INSERT INTO sessions SELECT (r).* FROM (SELECT jsonb_populate_record(c,"
            " jsonb_build_object('session_id', gen_random_uuid(), 'user_id', n, 'slot', n)) r"
            " FROM copy c, generate_series(1, 1200) n) copies"
        )
    await put(roost, idle_timeout=Duration(seconds=77))
    async with roost.one.running.database.connection() as connection:
        rows = await connection.execute(
            "SELECT count(*), count(DISTINCT policy), bool_and(due_at <= now()) FROM sessions"
        )
        assert await rows.fetchone() == (1201, 1, True)


async def test_an_operators_new_default_applies_from_the_next_start(
    emulator: Emulator, database_url: str
) -> None:
    """A replica that restarted with another default does not reuse a session against it."""
    async with world(emulator, database_url, replicas=1) as roost:
        first = await roost.one.start()
    async with world(emulator, database_url, replicas=1, persistence="ephemeral") as roost:
        second = await roost.one.start()
        assert second.outcome == pb.START_OUTCOME_CREATED
        assert second.session.predecessor_session_id == first.session.session_id


# --- another spec ------------------------------------------------------------------------------


async def test_a_changed_spec_is_allowed_and_reported_by_its_parts(roost: World) -> None:
    """ALLOW: the session continues as it is. The answer names the parts that differ, no values."""
    await roost.one.start(spec=spec(env={"PASSWORD": "hunter2hunter2"}))
    other = spec(env={"PASSWORD": "swordfish!swordfish"}, secret_generation="7")
    answer = await roost.one.start(spec=other)
    assert answer.outcome == pb.START_OUTCOME_REUSED
    (condition,) = answer.session.conditions
    assert condition.type == pb.CONDITION_TYPE_FINGERPRINT_CHANGED
    assert "env, secret_generation" in condition.message
    assert "swordfish" not in str(answer)


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_changed_spec_is_rejected_naming_the_parts(roost: World, stopped: bool) -> None:
    """REFUSE: on the hot path, for a paused session, and in a preview; nothing is changed."""
    await put(roost, on_fingerprint_change=REFUSE)
    session = (await roost.one.start(spec=spec(env={"A": "hunter2hunter2"}))).session
    assert (await roost.one.start(spec=spec(env={"A": "hunter2hunter2"}))).outcome == (
        pb.START_OUTCOME_REUSED
    )
    if stopped:
        await roost.one.stop(session.session_id)
    before = await roost.one.get(session.session_id)
    wanted = spec(env={"A": "swordfish!swordfish"}, region="ams")
    failure = await failing(roost.one.start(spec=wanted))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "FINGERPRINT_CHANGED",
    )
    assert failure.metadata["parts"] == "env,region"
    assert "swordfish" not in failure.message
    assert "hunter2" not in failure.message
    preview = session_rpc_pb.PreviewStartRequest(
        start=session_rpc_pb.StartSessionRequest(key=key(), spec=wanted)
    )
    seen = await roost.one.stub.PreviewStart(preview, timeout=TIMEOUT)
    assert seen.error_reason == "FINGERPRINT_CHANGED"
    assert (await roost.one.get(session.session_id)).etag == before.etag
    fresh = await roost.one.start(spec=wanted, mode=pb.START_MODE_FRESH)
    assert fresh.outcome == pb.START_OUTCOME_CREATED


@pytest.mark.replicas(2)
async def test_a_projects_rotated_secrets_apply_to_sessions_of_its_spec(roost: World) -> None:
    """A start without a spec is compared with the project's if the session was created from it,
    also where the session was verified a moment ago.
    """
    await put(roost, on_fingerprint_change=REFUSE, spec=spec(secret_generation="1"))
    await roost.one.start()
    own = await roost.one.start("crane", spec=spec(secret_generation="of my own"))
    await put(roost, spec=spec(secret_generation="2"))
    failure = await failing(roost.two.start())
    assert failure.reason == "FINGERPRINT_CHANGED"
    assert failure.metadata["parts"] == "secret_generation"
    again = await roost.two.start("crane")
    assert again.session.session_id == own.session.session_id


async def test_without_a_volume_a_container_is_not_recreated(roost: World) -> None:
    """RECREATE_KEEPING_FILES does not claim to keep files that would be lost."""
    await put(roost, on_fingerprint_change=RECREATE)
    session = (await roost.one.start(spec=spec(env={"A": "1"}))).session
    failure = await failing(roost.one.start(spec=spec(env={"A": "2"})))
    assert failure.reason == "FINGERPRINT_CHANGED"
    assert "mount no common volume" in failure.message
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE


async def fly(roost: World, path: str, body: dict[str, object]) -> dict[str, Any]:
    """A POST to the provider itself. Any: JSON as Fly has it."""
    url = f"{roost.emulator.api_url}/v1/apps/{APP}{path}"
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = await roost.http.post(url, json=body, headers=headers)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def in_guest(roost: World, session: pb.Session, command: str) -> str:
    """What a shell command writes in the session's container."""
    path = f"/machines/{session.container.container_id}/exec"
    answer = await fly(roost, path, {"command": ["sh", "-c", command]})
    return str(answer.get("stdout", ""))


def mounted(volume_id: str, **fields: Any) -> container_pb.ContainerSpec:
    """A spec with the volume. Any: fields of every type."""
    mount = container_pb.Mount(volume_id=volume_id, path="/data")
    return container_pb.ContainerSpec(image=IMAGE, mounts=[mount], **fields)


@pytest.mark.parametrize("stopped", [False, True])
async def test_on_a_volume_a_container_is_recreated_with_its_files(
    roost: World, stopped: bool
) -> None:
    """The same session, next generation, new spec and old files, and one container at the end.
    Asking for memory is rejected and changes nothing.
    """
    await put(roost, on_fingerprint_change=RECREATE)
    volume = await fly(roost, "/volumes", {"name": "data", "region": "iad", "size_gb": 1})
    volume_id = str(volume["id"])
    first = (await roost.one.start(spec=mounted(volume_id, env={"A": "1"}))).session
    await in_guest(roost, first, "echo kept > /data/file")
    if stopped:
        await roost.one.stop(first.session_id)
    wanted = mounted(volume_id, env={"A": "2"})
    failure = await failing(roost.one.start(spec=wanted, min_continuity=pb.CONTINUITY_MEMORY))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    again = await roost.one.start(spec=wanted)
    assert again.session.session_id == first.session_id
    assert again.session.generation == 2
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_CREATED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert again.session.fingerprint != first.fingerprint
    assert not again.session.conditions
    assert await in_guest(roost, again.session, "cat /data/file; echo $A") == "kept\n2\n"
    assert await roost.committed("destroy", first.session_id) == 1
    assert (await roost.one.start(spec=wanted)).outcome == pb.START_OUTCOME_REUSED
