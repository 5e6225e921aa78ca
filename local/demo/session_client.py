"""A small synchronous client of session_service, used by the demo; also an example."""

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
#: The first and the longest pause before a retry, if the service requests none. The pause doubles
#: with each retry.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class CallFailed(Exception):
    """The service answered with an error. Branch on `reason`, never on the message."""

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
        """The reason of the ErrorInfo; empty for an error without one."""
        self.candidates = candidates
        """The candidates that the user chooses from, best first; only with CHOICE_REQUIRED."""


class SessionClient:
    """session_service over a channel; `timeout` is in seconds per call, including retries.

    UNAVAILABLE is retried with the same request_id, after the pause that the service requests, so a
    call whose answer was lost is not executed twice. Every other error raises CallFailed at once.
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
        """Start the session of the key in the way that preserves the most of its state.

        Without an image a new container is created from the project's policy. `choice_token` is the
        token of the candidate that the user chose.
        """
        request = session_service_pb2.StartSessionRequest(
            request_id=_new_id(), key=key, mode=mode, choice_token=choice_token
        )
        if image:
            request.spec.image = image
        return self._call("StartSession", request, session_service_pb2.StartSessionResponse)

    def stop(self, session_id: str) -> Session:
        """Stop the session as its policy says; by default it is suspended with its memory."""
        request = session_service_pb2.StopSessionRequest(
            request_id=_new_id(), session_id=session_id
        )
        return self._call("StopSession", request, session_service_pb2.StopSessionResponse).session

    def end(self, session_id: str) -> Session:
        """End the session. It can be undeleted during the grace period."""
        request = session_service_pb2.EndSessionRequest(request_id=_new_id(), session_id=session_id)
        return self._call("EndSession", request, session_service_pb2.EndSessionResponse).session

    def undelete(self, session_id: str) -> Session:
        """Undelete an ended session. Fails with LIVE_SESSION_EXISTS if its key has a live one."""
        request = session_service_pb2.UndeleteSessionRequest(
            request_id=_new_id(), session_id=session_id
        )
        answer = self._call("UndeleteSession", request, session_service_pb2.UndeleteSessionResponse)
        return answer.session

    def get(self, session_id: str) -> Session:
        """Read the session as last recorded."""
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return self._call("GetSession", request, session_service_pb2.GetSessionResponse).session

    def set_policy(self, project_id: str, policy: Policy) -> ProjectPolicy:
        """Set the fields that `policy` has; the project's other fields stay unchanged."""
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
        unavailable: CallFailed | None = None
        # Called by its path: the generated stub has types for asyncio only.
        rpc = self._channel.unary_unary(
            f"/{service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        while True:
            try:
                return rpc(request, timeout=deadline - time.monotonic())
            except grpc.RpcError as error:
                failed, requested_pause = _parsed(error)
                if failed.code is grpc.StatusCode.DEADLINE_EXCEEDED and unavailable:
                    # This client's deadline cut the last attempt short. The error of the attempt
                    # before it names the cause.
                    raise unavailable from error
                wait = pause if requested_pause is None else requested_pause
                last = time.monotonic() + wait >= deadline
                if failed.code is not grpc.StatusCode.UNAVAILABLE or last:
                    raise failed from error
                unavailable = failed
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _parsed(error: grpc.RpcError) -> tuple[CallFailed, float | None]:
    """The error with its details, and the seconds after which the service wants a retry."""
    # grpc raises the call object itself for a failed synchronous call.
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
    return CallFailed(call.code(), message, info.reason, tuple(choice.candidates)), pause


def _details(call: grpc.Call) -> list[any_pb2.Any]:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return list(status_pb2.Status.FromString(value).details)
    return []


def _new_id() -> str:
    return str(uuid.uuid4())
