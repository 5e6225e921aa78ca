"""The callers' client: gRPC to each replica, HTTP to previews. Every call is recorded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import httpx

from local.fly.admin import FRESH_CONNECTIONS
from local.ports import HOST
from local.stack.grpc_health import OPTIONS
from roost.session.v1 import checkpoint_service_pb2 as checkpoint_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.chaos.history import Call, Shown
from tests.container.harness import read_failure

if TYPE_CHECKING:
    from tests.chaos.history import History

#: Deadline of a call, in s: a dead owner's lease, the rest of its work after takeover, and its own.
DEADLINE = 20.0
CLICK_SECONDS = 3.0


class RecordingClient:
    """Makes calls and records requests and answers in a history."""

    def __init__(self, targets: list[str], history: History) -> None:
        self._channels = [grpc.aio.insecure_channel(target, options=OPTIONS) for target in targets]
        self._stubs = [
            (SessionServiceStub(channel), CheckpointServiceStub(channel))
            for channel in self._channels
        ]
        self._history = history
        self._http = httpx.AsyncClient(
            trust_env=False, verify=False, timeout=CLICK_SECONDS, limits=FRESH_CONNECTIONS
        )
        self.replicas = len(targets)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the first replica."""
        return self._channels[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()
        for channel in self._channels:
            await channel.close()

    async def call(
        self,
        caller: str,
        key: str,
        method: str,
        replica: int,
        /,
        **fields: Any,
    ) -> Call:
        """Make one call; return its entry in the history. Any: the fields of the request."""
        sessions, checkpoints = self._stubs[replica]
        of_session_service = hasattr(sessions, method)
        request = getattr(rpc_pb if of_session_service else checkpoint_pb, f"{method}Request")(
            **fields
        )
        entry = self._history.begin(
            Call(
                len(self._history.calls),
                caller,
                key,
                method,
                time.time(),
                replica,
                request_id=getattr(request, "request_id", ""),
                request_session=getattr(request, "session_id", ""),
                mode=_name(pb.StartMode, getattr(request, "mode", 0), "START_MODE_"),
                min_continuity=getattr(request, "min_continuity", 0),
                depth=_name(pb.PauseDepth, getattr(request, "depth", 0), "PAUSE_DEPTH_"),
                now=getattr(request, "now", False),
                checkpoint_id=getattr(request, "checkpoint_id", ""),
                checkpoint_number=getattr(request, "number", 0),
                pin=getattr(request, "pinned", False),
                deadline=DEADLINE,
            )
        )
        try:
            stub = sessions if of_session_service else checkpoints
            answer = await getattr(stub, method)(request, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            failure = read_failure(error)
            entry.status, entry.reason = failure.code.name, failure.reason
            entry.has_retry_info, entry.message = (
                failure.retry_seconds is not None,
                failure.message,
            )
        else:
            entry.status = "OK"
            _read(entry, answer)
        self._history.end(entry, time.time())
        return entry

    async def click(self, caller: str, opened: Call) -> Call:
        """Click the counter of a started session. No other click on it may overlap."""
        entry = self._history.begin(
            Call(len(self._history.calls), caller, opened.key, "click", time.time())
        )
        entry.request_session, entry.machine = opened.answer_session, opened.machine
        url = httpx.URL(opened.url).join("click")
        try:
            answer = await self._http.post(
                url.copy_with(host=HOST), headers={"host": url.netloc.decode()}
            )
        except (httpx.ConnectError, httpx.ConnectTimeout):
            entry.status = "REFUSED"
        except httpx.HTTPError as error:
            entry.status, entry.message = "UNKNOWN", type(error).__name__
        else:
            entry.message = "" if answer.is_success else answer.text.strip()
            # An error of the proxy itself: the guest did not see the request.
            entry.status = "REFUSED" if "[P" in entry.message else "UNKNOWN"
            if answer.is_success:
                entry.status, entry.value = "OK", int(answer.text)
        self._history.end(entry, time.time())
        return entry


# Any: messages of several types, read by the fields that they share.
def _read(call: Call, answer: Any) -> None:
    session = getattr(answer, "session", None)
    if isinstance(answer, rpc_pb.PutHoldResponse):
        call.hold_until = answer.hold.expire_time.ToNanoseconds() / 1e9
    if session is not None:
        call.answer_session = session.session_id
        call.state = _name(pb.Session.State, session.state, "STATE_")
        call.generation = session.generation
        call.machine, call.url = session.container.container_id, session.container.url
        if session.container.HasField("verify_time"):
            call.verify_time = session.container.verify_time.ToNanoseconds() / 1e9
    call.decision_id = getattr(answer, "decision_id", "")
    call.checkpoints = tuple(_shown(each) for each in _checkpoints(answer))
    if hasattr(answer, "outcome"):
        call.outcome = _name(pb.StartOutcome, answer.outcome, "START_OUTCOME_")
        call.continuity, call.verified = answer.continuity, answer.continuity_verified
        call.joined = getattr(answer, "joined", False)
        call.attempts = tuple(
            f"{_name(pb.Rung, each.rung, 'RUNG_')}:{each.reason}" for each in answer.attempts
        )
        for each in answer.attempts:
            if each.result == pb.ATTEMPT_RESULT_SUCCEEDED and each.rung == pb.RUNG_RESTORE:
                call.restored_number = each.checkpoint_number


def _checkpoints(answer: Any) -> list[checkpoint_pb.Checkpoint]:
    """The checkpoints in an answer."""
    if isinstance(answer, checkpoint_pb.ListCheckpointsResponse):
        return list(answer.checkpoints)
    for name in ("checkpoint", "rollback_checkpoint"):
        if name in answer.DESCRIPTOR.fields_by_name and answer.HasField(name):
            return [getattr(answer, name)]
    return []


def _shown(checkpoint: checkpoint_pb.Checkpoint) -> Shown:
    return Shown(
        checkpoint.checkpoint_id,
        checkpoint.number,
        _name(checkpoint_pb.Checkpoint.State, checkpoint.state, "STATE_"),
        checkpoint.sha256.hex(),
        checkpoint.pinned,
    )


def _name(enum: Any, number: int, prefix: str) -> str:
    """The value's name without prefix; empty for the unspecified value."""
    return enum.Name(number).removeprefix(prefix) if number else ""
