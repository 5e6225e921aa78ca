"""The client of StreamContainers: only a whole list is a list, also from an older service."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from roost.container.v1 import container_service_pb2 as pb
from session_service import errors
from session_service.clients.containers import GrpcContainers
from session_service.config import Config
from session_service.server import composition

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

SERVICE = pb.DESCRIPTOR.services_by_name["ContainerService"].full_name


def part(*names: str) -> pb.StreamContainersResponse:
    """A message with these containers."""
    return pb.StreamContainersResponse(
        containers=[pb.Container(app="birds", container_id=name) for name in names]
    )


def end(count: int) -> pb.StreamContainersResponse:
    """The last message of a stream of so many containers."""
    return pb.StreamContainersResponse(complete=True, container_count=count)


@asynccontextmanager
async def serving(handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> AsyncGenerator[str]:
    """A server with these methods of ContainerService; yields its address."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def streamed(target: str) -> list[str]:
    """The ids that the client streams from this server."""
    config = Config(database_url="", container_target=target)
    async with (
        composition.channel(config) as channel,
        aclosing(GrpcContainers(channel).stream("birds", timeout=20)) as parts,
    ):
        return [each.address.container_id async for some in parts for each in some]


def answering(
    *messages: pb.StreamContainersResponse, status: grpc.StatusCode | None = None
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """A service that streams these messages, and then fails with the status, if any."""

    async def stream(
        request: pb.StreamContainersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        for message in messages:
            yield message
        if status is not None:
            await context.abort(status, "as the test wants it")

    handler = grpc.unary_stream_rpc_method_handler(
        stream,
        pb.StreamContainersRequest.FromString,
        pb.StreamContainersResponse.SerializeToString,
    )
    return {"StreamContainers": handler}


async def test_a_whole_list_comes_in_its_parts() -> None:
    """Also an empty one."""
    async with serving(answering(part("a", "b"), part("c"), end(3))) as target:
        assert await streamed(target) == ["a", "b", "c"]
    async with serving(answering(end(0))) as target:
        assert await streamed(target) == []


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (part("a"),),
        (part("a"), end(2)),
        (part("a", "b"), end(1)),
        (part("a"), end(1), part("b")),
        (end(1),),
    ],
)
async def test_a_stream_without_its_end_is_no_list(
    messages: tuple[pb.StreamContainersResponse, ...],
) -> None:
    """It ended with OK, but its last message is missing or counts others than were received."""
    async with serving(answering(*messages)) as target:
        with pytest.raises(errors.ProviderUnavailable):
            await streamed(target)


async def test_a_stream_that_fails_is_no_list() -> None:
    """Before its first part and after it; UNIMPLEMENTED after a part is a failure too."""
    for messages in ((), (part("a"),), (part("a"), end(1))):
        async with serving(answering(*messages, status=grpc.StatusCode.UNAVAILABLE)) as target:
            with pytest.raises(errors.ProviderUnavailable):
                await streamed(target)
    handlers = answering(part("a"), status=grpc.StatusCode.UNIMPLEMENTED)
    async with serving(handlers) as target:
        with pytest.raises(errors.ProviderUnavailable):
            await streamed(target)


async def test_a_service_of_the_version_before_lists_at_once() -> None:
    """It knows no StreamContainers: its one response comes in parts."""
    names = [f"m{number}" for number in range(250)]

    async def listed(request: pb.ListContainersRequest, _: object) -> pb.ListContainersResponse:
        assert request.app == "birds"
        return pb.ListContainersResponse(containers=part(*names).containers)

    handler = grpc.unary_unary_rpc_method_handler(
        listed,
        pb.ListContainersRequest.FromString,
        pb.ListContainersResponse.SerializeToString,
    )
    async with serving({"ListContainers": handler}) as target:
        assert await streamed(target) == names
