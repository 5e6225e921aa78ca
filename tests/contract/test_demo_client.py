"""The demo's client follows the contract: its calls, and the errors that it reads.

grpcio-testing fits here, as the client is synchronous: it acts as the server, call by call.
"""

from __future__ import annotations

import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc_testing  # type: ignore[import-untyped]
import pytest
from google.rpc import error_details_pb2, status_pb2

from local.demo.session_client import SERVICE, CallFailed, SessionClient
from roost.session.v1 import session_pb2
from roost.session.v1 import session_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

T = TypeVar("T")
KEY = session_pb2.SessionKey(project_id="demo", user_id="me")
SESSION = session_pb2.Session(session_id="0198", state=session_pb2.Session.STATE_PAUSED)


class Server:
    """The server of the client under test: the test takes each call and answers it."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.channel: Any = grpc_testing.channel(
            [SERVICE], grpc_testing.strict_real_time()
        )  # grpcio-testing is untyped
        self._threads = threads

    def calling(self, call: Callable[[SessionClient], T], timeout: float = 50.0) -> Future[T]:
        """Begin the client's call in another thread, since it blocks its caller."""
        return self._threads.submit(call, SessionClient(self.channel, timeout))

    def answer(self, method: str, response: Message) -> Any:
        """Take the next call of the method, answer it, and return its request."""
        _, request, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        rpc.send_initial_metadata(())
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return request

    def fail(self, method: str, code: grpc.StatusCode, *details: Message) -> Any:
        """Take the next call of the method, fail it, and return its request."""
        status = status_pb2.Status(code=code.value[0], message="no")
        for detail in details:
            status.details.add().Pack(detail)
        trailers = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()
        _, request, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        rpc.send_initial_metadata(())
        rpc.terminate(None, trailers, code, "no")
        return request


@pytest.fixture
def server() -> Iterator[Server]:
    with ThreadPoolExecutor(1) as threads:
        yield Server(threads)


def test_start_sends_its_arguments_under_a_new_request_id(server: Server) -> None:
    call = server.calling(lambda c: c.start(KEY, "roost/counter", session_pb2.START_MODE_FRESH))
    reply = pb.StartSessionResponse(session=SESSION, outcome=session_pb2.START_OUTCOME_CREATED)
    request = server.answer("StartSession", reply)
    assert call.result(30) == reply
    assert uuid.UUID(request.request_id).version == 4
    assert request.key == KEY
    assert request.mode == session_pb2.START_MODE_FRESH
    assert request.spec.image == "roost/counter"


@pytest.mark.parametrize(
    ("method", "call", "response"),
    [
        ("StopSession", lambda c: c.stop("0198"), pb.StopSessionResponse(session=SESSION)),
        ("EndSession", lambda c: c.end("0198"), pb.EndSessionResponse(session=SESSION)),
        (
            "UndeleteSession",
            lambda c: c.undelete("0198"),
            pb.UndeleteSessionResponse(session=SESSION),
        ),
        ("GetSession", lambda c: c.get("0198"), pb.GetSessionResponse(session=SESSION)),
    ],
)
def test_calls_on_a_session_name_it_and_return_it(
    server: Server,
    method: str,
    call: Callable[[SessionClient], session_pb2.Session],
    response: Message,
) -> None:
    future = server.calling(call)
    request = server.answer(method, response)
    assert future.result(30) == SESSION
    assert request.session_id == "0198"
    if method != "GetSession":
        assert uuid.UUID(request.request_id).version == 4


def test_unavailable_is_retried_under_the_same_request_id(server: Server) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(10)
    call = server.calling(lambda c: c.stop("0198"))
    first = server.fail("StopSession", grpc.StatusCode.UNAVAILABLE, retry)
    second = server.fail("StopSession", grpc.StatusCode.UNAVAILABLE)
    third = server.answer("StopSession", pb.StopSessionResponse(session=SESSION))
    assert call.result(30) == SESSION
    assert first == second == third


def test_a_final_error_is_not_retried_and_gives_its_reason(server: Server) -> None:
    info = error_details_pb2.ErrorInfo(reason="LIVE_SESSION_EXISTS", domain="roost")
    call = server.calling(lambda c: c.undelete("0198"))
    server.fail("UndeleteSession", grpc.StatusCode.ALREADY_EXISTS, info)
    with pytest.raises(CallFailed, match=r"^LIVE_SESSION_EXISTS: no$") as failed:
        call.result(30)
    assert failed.value.reason == "LIVE_SESSION_EXISTS"
    assert failed.value.code is grpc.StatusCode.ALREADY_EXISTS


def test_an_error_without_details_is_named_by_its_code(server: Server) -> None:
    call = server.calling(lambda c: c.get("0198"))
    server.fail("GetSession", grpc.StatusCode.INTERNAL)
    with pytest.raises(CallFailed, match=r"^INTERNAL: no$") as failed:
        call.result(30)
    assert failed.value.reason == ""


def test_retries_end_at_the_timeout(server: Server) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(120)
    call = server.calling(lambda c: c.get("0198"))
    server.fail("GetSession", grpc.StatusCode.UNAVAILABLE, retry)
    with pytest.raises(CallFailed, match=r"^UNAVAILABLE"):
        call.result(30)


def test_a_last_try_that_is_cut_off_does_not_hide_the_error(server: Server) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(10)
    info = error_details_pb2.ErrorInfo(reason="PROVIDER_UNAVAILABLE", domain="roost")
    call = server.calling(lambda c: c.get("0198"))
    server.fail("GetSession", grpc.StatusCode.UNAVAILABLE, info, retry)
    server.fail("GetSession", grpc.StatusCode.DEADLINE_EXCEEDED)
    with pytest.raises(CallFailed, match=r"^PROVIDER_UNAVAILABLE: no$"):
        call.result(30)
