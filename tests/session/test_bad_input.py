"""Bad input is rejected with the name of the field; nothing is written; the server stays up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.cases import each
from tests.container.harness import failing
from tests.session.harness import TIMEOUT, key, request_id, spec

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from google.protobuf.message import Message

    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

LONG = "x" * 129
SOME = request_id()


def start(**fields: Any) -> rpc_pb.StartSessionRequest:
    """A request with a valid key and these fields. Any: fields of every type."""
    return rpc_pb.StartSessionRequest(**{"key": key(), **fields})


STARTS = {
    "key": rpc_pb.StartSessionRequest(),
    "key.project_id": start(key=pb.SessionKey(user_id="u")),
    "key.user_id": start(key=pb.SessionKey(project_id="p", user_id=LONG)),
    "key.slot": start(key=pb.SessionKey(project_id="p", user_id="u", slot="a\nb")),
    "request_id": start(request_id="not-a-uuid"),
    "mode": start(mode=77),
    "min_continuity": start(min_continuity=99),
    "spec.image": start(spec=container_pb.ContainerSpec()),
    "spec.guest.memory_mb": start(spec=spec(guest=container_pb.Guest(memory_mb=4096))),
    "spec.guest.cpus": start(spec=spec(guest=container_pb.Guest(cpus=-1))),
    "spec.services[0].internal_port": start(spec=spec(services=[container_pb.ServicePort()])),
    'spec.env["1A"]': start(spec=spec(env={"1A": "x"})),
    "spec.restart_policy": start(spec=spec(restart_policy=44)),
    "spec.secret_generation": start(spec=spec(secret_generation="x" * 65)),
    "choice_token": start(choice_token="x" * 513),
    "remember": start(remember=True),
    "policy.idle_timeout": start(policy=pb.Policy(idle_timeout=Duration(seconds=-1))),
    "policy.spec": start(policy=pb.Policy(spec=spec())),
}


@each("field", STARTS)
async def test_a_wrong_start_names_its_field_and_writes_nothing(roost: World, field: str) -> None:
    """INVALID_ARGUMENT, INVALID_FIELD; no session, no decision, no provider call."""
    failure = await failing(roost.one.stub.StartSession(STARTS[field], timeout=TIMEOUT))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert field in failure.fields
    assert field in failure.message
    async with roost.one.running.database.connection() as connection:
        rows = await connection.execute(
            "SELECT (SELECT count(*) FROM sessions) + (SELECT count(*) FROM decisions)"
        )
        assert await rows.fetchone() == (0,)
    assert await roost.calls() == []


async def test_all_wrong_fields_of_a_request_are_named_at_once(roost: World) -> None:
    """The caller can correct them all before the next call."""
    request = start(key=pb.SessionKey(), request_id="x", mode=77)
    failure = await failing(roost.one.stub.StartSession(request, timeout=TIMEOUT))
    assert set(failure.fields) == {"key.project_id", "key.user_id", "request_id", "mode"}
    preview = rpc_pb.PreviewStartRequest(start=request)
    failure = await failing(roost.one.stub.PreviewStart(preview, timeout=TIMEOUT))
    assert "start.key.user_id" in failure.fields


async def test_wrong_ids_pages_and_filters_are_named(roost: World) -> None:
    """Ids that are no UUIDs, negative page sizes, invalid tokens, filters that do not parse."""
    stub = roost.one.stub
    calls: dict[str, Awaitable[object]] = {
        "session_id": stub.GetSession(rpc_pb.GetSessionRequest(session_id="{}"), timeout=TIMEOUT),
        "page_size": stub.ListSessions(rpc_pb.ListSessionsRequest(page_size=-1), timeout=TIMEOUT),
        "page_token": stub.ListSessions(
            rpc_pb.ListSessionsRequest(page_token="zzz"), timeout=TIMEOUT
        ),
        "filter": stub.ListSessions(
            rpc_pb.ListSessionsRequest(filter="colour = 1"), timeout=TIMEOUT
        ),
        "order_by": stub.ListSessions(
            rpc_pb.ListSessionsRequest(order_by="user_id"), timeout=TIMEOUT
        ),
        "depth": stub.PauseSession(
            rpc_pb.PauseSessionRequest(session_id=request_id(), depth=9),  # type: ignore[arg-type]
            timeout=TIMEOUT,
        ),
        "activity": stub.TouchSession(
            rpc_pb.TouchSessionRequest(session_id=request_id(), activity=LONG), timeout=TIMEOUT
        ),
    }
    for field, call in calls.items():
        failure = await failing(call)
        assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))


async def test_an_unknown_session_is_not_found(roost: World) -> None:
    """SESSION_NOT_FOUND on every call that names a session."""
    unknown = request_id()
    for call in (
        roost.one.get(unknown),
        roost.one.stop(unknown),
        roost.one.end(unknown),
        roost.one.undelete(unknown),
        roost.one.resume(unknown),
    ):
        failure = await failing(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_a_message_over_the_limit_is_rejected_and_the_server_stays_up(roost: World) -> None:
    """A message of 5 MiB is RESOURCE_EXHAUSTED, by gRPC itself."""
    huge = start(spec=container_pb.ContainerSpec(image="x" * (5 * 1024 * 1024)))
    failure = await failing(roost.one.stub.StartSession(huge, timeout=TIMEOUT))
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_CREATED


@each(
    ("request_", "field"),
    [
        (rpc_pb.PutHoldRequest(name="build", ttl=Duration(seconds=9)), "session_id"),
        (rpc_pb.PutHoldRequest(session_id=SOME, ttl=Duration(seconds=9)), "name"),
        (rpc_pb.PutHoldRequest(session_id=SOME, name="build"), "ttl"),
        (rpc_pb.PutHoldRequest(session_id=SOME, name="b", ttl=Duration(seconds=86_401)), "ttl"),
        (rpc_pb.PutHoldRequest(session_id=SOME, name="b", ttl=Duration(seconds=-1)), "ttl"),
        (rpc_pb.ReleaseHoldRequest(session_id=SOME, name="x" * 65), "name"),
        (rpc_pb.ExplainIdleRequest(session_id="nest"), "session_id"),
    ],
)
async def test_holds_name_the_field_that_is_wrong(
    roost: World, request_: Message, field: str
) -> None:
    """INVALID_FIELD, with the field's name."""
    method = getattr(roost.one.stub, type(request_).__name__.removesuffix("Request"))
    failure = await failing(method(request_, timeout=TIMEOUT))
    assert failure.reason == "INVALID_FIELD"
    assert failure.fields == (field,)


async def test_secrets_of_a_spec_are_in_no_answer_and_no_log(
    roost: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Any environment variable may be a secret: it is sent to the container only."""
    caplog.set_level("DEBUG", "session_service")
    secret = "hunter2hunter2"
    answer = await roost.one.start(spec=spec(env={"PASSWORD": secret}))
    decisions = await roost.one.decisions(answer.session.session_id)
    assert secret not in str(answer)
    assert secret not in str(decisions)
    assert secret not in caplog.text
