"""The wait that a refusal asks for, in the header that gRPC's own retry policies read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from grpc_edge.retry import NEVER, PUSHBACK_HEADER, pushback
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.session.harness import key

if TYPE_CHECKING:
    from tests.session.harness import World


@given(st.integers(min_value=0, max_value=10**13))
def test_the_header_is_a_whole_number_of_at_least_one(nanoseconds: int) -> None:
    """And never less than RetryInfo says, nor a millisecond more."""
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X"))
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(nanoseconds)
    status.details.add().Pack(retry)
    name, value = pushback(status)
    assert name == PUSHBACK_HEADER
    assert value.isdigit()
    assert int(value) >= 1
    assert nanoseconds <= int(value) * 1_000_000 < max(nanoseconds + 1_000_000, 1_000_001)


def test_an_error_without_a_delay_is_not_to_be_repeated() -> None:
    """The same request would be refused again."""
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X"))
    assert pushback(status) == (PUSHBACK_HEADER, NEVER)


async def refusal(roost: World, request: rpc_pb.StartSessionRequest) -> grpc.aio.AioRpcError:
    """The refusal of a start."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await SessionServiceStub(roost.one.channel).StartSession(request, timeout=30)
    return raised.value


async def test_refusals_carry_the_header(roost: World) -> None:
    """A retryable one the milliseconds of its RetryInfo, any other one -1."""
    invalid = await refusal(roost, rpc_pb.StartSessionRequest())
    assert dict(invalid.trailing_metadata() or ())[PUSHBACK_HEADER] == NEVER
    await roost.admin.set_fault("capacity", action="create", times=None)
    retryable = await refusal(roost, rpc_pb.StartSessionRequest(key=key("wren")))
    assert retryable.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(retryable.trailing_metadata() or ())
    status = status_pb2.Status.FromString(bytes(trailers["grpc-status-details-bin"]))
    assert trailers[PUSHBACK_HEADER] == pushback(status)[1] != NEVER
