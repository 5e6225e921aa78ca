"""One caller's wires: gRPC to each replica, HTTP to previews; every call goes into the history."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import httpx

from local.health import OPTIONS
from local.ports import HOST
from roost.session.v1 import checkpoint_service_pb2 as checkpoint_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.chaos.history import Call, Shown
from tests.container.harness import read_failure

if TYPE_CHECKING:
    from tests.chaos.history import History

#: The longest that a caller waits, in s: a dead owner's lease, its work taken over, and its own.
DEADLINE = 20.0
CLICK_SECONDS = 3.0


class Wire:
    """Calls, and notes what was asked and answered."""

    def __init__(self, targets: list[str], history: History) -> None:
        self._channels = [grpc.aio.insecure_channel(target, options=OPTIONS) for target in targets]
        self._stubs = [
            (SessionServiceStub(channel), CheckpointServiceStub(channel))
            for channel in self._channels
        ]
        self._history = history
        self._http = httpx.AsyncClient(trust_env=False, verify=False, timeout=CLICK_SECONDS)
        self.replicas = len(targets)

    @property
    def channel(self) -> grpc.aio.Channel:
        """To the first replica."""
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
        """Make one call; its outcome, good or bad, is in the returned entry. Any: its fields."""
        sessions, checkpoints = self._stubs[replica]
        ours = hasattr(sessions, method)
        request = getattr(rpc_pb if ours else checkpoint_pb, f"{method}Request")(**fields)
        noted = self._history.begin(
            Call(
                len(self._history.calls),
                caller,
                key,
                method,
                time.time(),
                replica,
                request_id=getattr(request, "request_id", ""),
                asked=getattr(request, "session_id", ""),
                mode=_name(pb.StartMode, getattr(request, "mode", 0), "START_MODE_"),
                least=getattr(request, "min_continuity", 0),
                depth=_name(pb.PauseDepth, getattr(request, "depth", 0), "PAUSE_DEPTH_"),
                now=getattr(request, "now", False),
                target=getattr(request, "checkpoint_id", ""),
                which=getattr(request, "number", 0),
                pin=getattr(request, "pinned", False),
                deadline=DEADLINE,
            )
        )
        try:
            stub = sessions if ours else checkpoints
            answer = await getattr(stub, method)(request, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            failure = read_failure(error)
            noted.status, noted.reason = failure.code.name, failure.reason
            noted.retry, noted.message = failure.retry_seconds is not None, failure.message
        else:
            noted.status = "OK"
            _read(noted, answer)
        self._history.end(noted, time.time())
        return noted

    async def click(self, caller: str, opened: Call) -> Call:
        """Add one to the counter of a session that was opened; nobody else may meanwhile."""
        noted = self._history.begin(
            Call(len(self._history.calls), caller, opened.key, "click", time.time())
        )
        noted.asked, noted.machine = opened.named, opened.machine
        url = httpx.URL(opened.url)
        try:
            answer = await self._http.post(
                url.copy_with(host=HOST, path="/click"), headers={"host": url.netloc.decode()}
            )
        except (httpx.ConnectError, httpx.ConnectTimeout):
            noted.status = "REFUSED"
        except httpx.HTTPError as error:
            noted.status, noted.message = "UNKNOWN", type(error).__name__
        else:
            noted.message = "" if answer.is_success else answer.text.strip()
            # The proxy's own word, before it asked the guest.
            noted.status = "REFUSED" if "[P" in noted.message else "UNKNOWN"
            if answer.is_success:
                noted.status, noted.value = "OK", int(answer.text)
        self._history.end(noted, time.time())
        return noted


# Any: messages of many types, read by the names that they share.
def _read(call: Call, answer: Any) -> None:
    session = getattr(answer, "session", None)
    if isinstance(answer, rpc_pb.PutHoldResponse):
        call.until = answer.hold.expire_time.ToNanoseconds() / 1e9
    if session is not None:
        call.named = session.session_id
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
                call.restored = each.checkpoint_number


def _checkpoints(answer: Any) -> list[checkpoint_pb.Checkpoint]:
    """The checkpoints that an answer shows."""
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
    """The value's name without its type's; none for the unspecified."""
    return enum.Name(number).removeprefix(prefix) if number else ""
