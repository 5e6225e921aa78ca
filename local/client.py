"""A small synchronous client of session_service: the demo's, and an example of how to call it."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from roost.session.v1 import policy_service_pb2, session_pb2, session_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf import any_pb2
    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

    from roost.session.v1.policy_service_pb2 import ProjectPolicy
    from roost.session.v1.session_pb2 import Policy, Session, SessionKey, StartMode
    from roost.session.v1.session_service_pb2 import Candidate

    T = TypeVar("T", bound=Message)

SERVICE = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"]
POLICIES = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"]
#: Between two tries where the service does not say how long to wait; doubled each time.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Refused(Exception):
    """The service answered with an error; `reason` is what to branch on, never the message."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        candidates: Sequence[Candidate] = (),
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        """Of the ErrorInfo; "" where the error came without one."""
        self.candidates = candidates
        """What the user is to choose from, best first; of CHOICE_REQUIRED alone."""


class SessionClient:
    """session_service over a channel, each call within `timeout` seconds, retries included.

    UNAVAILABLE is retried, with the same request_id and after the pause that the service asks for:
    so a call whose answer was lost is not done twice. Every other error is a `Refused` at once.
    """

    def __init__(self, channel: grpc.Channel, timeout: float = 30.0) -> None:
        self._channel = channel
        self._timeout = timeout

    def start(
        self,
        key: SessionKey,
        image: str = "",
        mode: StartMode.ValueType = session_pb2.START_MODE_UNSPECIFIED,
        choice_token: str = "",
    ) -> session_service_pb2.StartSessionResponse:
        """Open the session at the key, whichever way keeps the most of it.

        Without an image a new container is made of what the project's policy says. `choice_token`
        is the one of the candidate that the user chose.
        """
        request = session_service_pb2.StartSessionRequest(
            request_id=_new_id(), key=key, mode=mode, choice_token=choice_token
        )
        if image:
            request.spec.image = image
        return self._call("StartSession", request, session_service_pb2.StartSessionResponse)

    def stop(self, session_id: str) -> Session:
        """Stop the session as its policy says; by default it is put to sleep with its memory."""
        request = session_service_pb2.StopSessionRequest(
            request_id=_new_id(), session_id=session_id
        )
        return self._call("StopSession", request, session_service_pb2.StopSessionResponse).session

    def end(self, session_id: str) -> Session:
        """End the session for its user; for a while it can be undeleted."""
        request = session_service_pb2.EndSessionRequest(request_id=_new_id(), session_id=session_id)
        return self._call("EndSession", request, session_service_pb2.EndSessionResponse).session

    def undelete(self, session_id: str) -> Session:
        """Bring an ended session back; refused with LIVE_SESSION_EXISTS where its key has one."""
        request = session_service_pb2.UndeleteSessionRequest(
            request_id=_new_id(), session_id=session_id
        )
        answer = self._call("UndeleteSession", request, session_service_pb2.UndeleteSessionResponse)
        return answer.session

    def get(self, session_id: str) -> Session:
        """The session as last recorded."""
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return self._call("GetSession", request, session_service_pb2.GetSessionResponse).session

    def set_policy(self, project_id: str, policy: Policy) -> ProjectPolicy:
        """Set what the policy has a value for; everything else of the project's stays as it is."""
        request = policy_service_pb2.UpdateProjectPolicyRequest(
            request_id=_new_id(), project_id=project_id, policy=policy
        )
        reply = policy_service_pb2.UpdateProjectPolicyResponse
        return self._call("UpdateProjectPolicy", request, reply, POLICIES).project_policy

    def _call(
        self,
        method: str,
        request: Message,
        answer: type[T],
        service: ServiceDescriptor = SERVICE,
    ) -> T:
        deadline = time.monotonic() + self._timeout
        pause = FIRST_PAUSE_SECONDS
        unavailable: Refused | None = None
        # The path by hand: the generated stub is typed for asyncio alone.
        rpc = self._channel.unary_unary(
            f"/{service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        while True:
            try:
                return rpc(request, timeout=deadline - time.monotonic())
            except grpc.RpcError as error:
                refused, asked_pause = _explained(error)
                if refused.code is grpc.StatusCode.DEADLINE_EXCEEDED and unavailable:
                    # The last try was cut short; what the one before it was told says more.
                    raise unavailable from error
                wait = pause if asked_pause is None else asked_pause
                last = time.monotonic() + wait >= deadline
                if refused.code is not grpc.StatusCode.UNAVAILABLE or last:
                    raise refused from error
                unavailable = refused
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _explained(error: grpc.RpcError) -> tuple[Refused, float | None]:
    """What the error says, and the seconds after which the service wants the call repeated."""
    # A failed synchronous call raises its own call object.
    call = cast("grpc.Call", error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    choice = session_service_pb2.ChoiceRequired()
    pause = None
    for detail in _details(call):
        if detail.Unpack(retry):
            pause = retry.retry_delay.ToTimedelta().total_seconds()
        elif not detail.Unpack(info):
            detail.Unpack(choice)
    message = call.details() or ""
    return Refused(call.code(), message, info.reason, tuple(choice.candidates)), pause


def _details(call: grpc.Call) -> list[any_pb2.Any]:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return list(status_pb2.Status.FromString(value).details)
    return []


def _new_id() -> str:
    return str(uuid.uuid4())
