"""A listing is read in pieces: the parser of JSON lists, and StreamContainers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import CircuitOpen, ProviderUnavailable
from container_service.fly import app_health, json_list, transport
from container_service.fly.app_health import AppHealthRegistry
from container_service.fly.call import Call
from container_service.fly.circuit_breaker import BreakerSettings
from container_service.fly.client import open_client
from container_service.fly.connection import RECEIVE_BYTES
from container_service.fly.json_list import OBJECT_LIMIT, JsonListReader
from container_service.main import fast_loop
from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import read_failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from container_service.containers.model import Container
    from tests.container.harness import Service

TEXT = st.text(max_size=8) | st.sampled_from(['"', "\\", "}{", "],[", "é\U0001f426", "\n"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
LISTS = st.lists(st.dictionaries(TEXT, JSON, max_size=4), max_size=6)


def read(*pieces: bytes) -> list[dict[str, Any]]:
    """The objects of a list that comes in these pieces."""
    reader = JsonListReader()
    found = [each for piece in pieces for each in reader.feed(piece)]
    reader.close()
    return found


def cut(body: bytes, places: list[int]) -> list[bytes]:
    """The body, cut at these places."""
    marks = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[begin:end] for begin, end in pairwise(marks)]


@given(LISTS, st.lists(st.integers(0, 10_000), max_size=12), st.booleans(), st.booleans())
def test_pieces_give_the_objects_of_the_whole(
    objects: list[dict[str, Any]], places: list[int], ascii_only: bool, spaced: bool
) -> None:
    """Wherever the body is cut, also in a character or an escape."""
    body = json.dumps(objects, ensure_ascii=ascii_only, indent=2 if spaced else None)
    assert read(*cut(body.encode(), places)) == objects


@given(LISTS.filter(bool), st.integers(0, 10_000), st.lists(st.integers(0, 10_000), max_size=4))
def test_a_list_that_was_cut_off_is_never_complete(
    objects: list[dict[str, Any]], end: int, places: list[int]
) -> None:
    """Not even between two objects."""
    body = json.dumps(objects).encode()
    with pytest.raises(ProviderUnavailable):
        read(*cut(body[: end % len(body)], places))


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{}", b"null", b"[1]", b"[null]", b"[[]]", b"[{},]", b'["x"]', b'{"error": ""}',
        b"[,{}]", b"[{} {}]", b"[{}]]", b"[{}] {}", b"[{}", b'[{"a": }]', b"[{'a': 1}]", b"\xff[]",
        b'[{"a": "\xff"}]', b"<html></html>",
    ],
)  # fmt: skip
def test_anything_but_a_list_of_objects_is_an_error(body: bytes) -> None:
    """Whether it comes at once or byte by byte."""
    for pieces in ([body], [bytes([byte]) for byte in body]):
        with pytest.raises(ProviderUnavailable):
            read(*pieces)


def test_an_object_that_never_ends_is_given_up_with_bounded_memory() -> None:
    """At OBJECT_LIMIT, so that a wrong answer is not collected as a whole."""
    reader, fed = JsonListReader(), 0
    assert list(reader.feed(b'[{"a": "')) == []
    with pytest.raises(ProviderUnavailable):
        while fed < 10 * OBJECT_LIMIT:
            fed += 65_536
            assert list(reader.feed(b"x" * 65_536)) == []
    assert fed <= 3 * OBJECT_LIMIT


def test_an_object_in_many_pieces_is_decoded_twice_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not once with each piece, which takes a time that grows with the square of its size."""
    tries: list[int] = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            tries.append(idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(json_list, "_DECODER", Counting())
    objects = [{"checks": [{"output": '}"{' * 5}] * 50}, {"a": "1"}]
    body = json.dumps(objects).encode()
    assert read(*(body[at : at + 16] for at in range(0, len(body), 16))) == objects
    assert len(tries) <= 2 * len(objects)


# --- over a scripted network ---------------------------------------------------------------------


def machines(count: int) -> list[dict[str, Any]]:
    """Machines as Fly lists them, reduced."""
    return [
        {"id": f"m{number}", "state": "started", "config": {"metadata": {"a": "1"}}}
        for number in range(count)
    ]


async def streamed(answer: httpx.AsyncByteStream | bytes, deadline: float = 10) -> list[Container]:
    """The containers that the client streams from this answer."""
    requests: list[httpx.Request] = []

    async def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        return httpx.Response(200, stream=answer)

    found: list[Container] = []
    network = httpx.MockTransport(respond)
    async with open_client("http://fly.test", "token", transport=network) as (fly, _):
        listed = fly.stream("birds", {}, Deadline.after(deadline))
        async with aclosing(listed) as parts:
            async for part in parts:
                found.extend(part)
        assert len(requests) == 1
    return found


class Body(httpx.AsyncByteStream):
    """A body in these pieces; then it breaks, or never ends."""

    def __init__(self, *pieces: bytes, end: str = "") -> None:
        self._pieces = pieces
        self._end = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._end == "break":
            raise httpx.ReadError("the connection was reset")
        if self._end == "hang":
            await asyncio.Event().wait()


async def test_a_stream_has_every_machine_and_leaves_destroyed_ones_out() -> None:
    """In the order of the provider, in parts that do not grow with the list."""
    listed = [*machines(1000), {"id": "gone", "state": "destroyed"}]
    found = await streamed(json.dumps(listed).encode())
    assert [each.ref.container_id for each in found] == [f"m{number}" for number in range(1000)]
    assert found[0].labels == {"a": "1"}


@pytest.mark.parametrize("end", ["break", "cut", "hang"])
async def test_a_body_that_does_not_end_well_is_an_error(end: str) -> None:
    """Never a shorter list: the connection breaks, the body ends early, or nothing comes."""
    body = json.dumps(machines(1000)).encode()
    with pytest.raises(ProviderUnavailable):
        await streamed(Body(body[:20_000], end=end), deadline=0.5)


async def test_a_machine_without_an_id_fails_the_stream() -> None:
    """Its absence would look like a loss."""
    with pytest.raises(ProviderUnavailable):
        await streamed(json.dumps([*machines(2), {"state": "started"}]).encode())


async def test_a_slow_reader_does_not_open_the_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It held a piece until the deadline had passed. A silent provider opens it."""
    monkeypatch.setattr(transport, "MEANINGFUL_TIMEOUT", 0.05)
    monkeypatch.setattr(app_health, "MEANINGFUL_TIMEOUT", 0.05)
    body = json.dumps(machines(1000)).encode()

    async def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Body(body[:40_000], end="hang"))

    async def is_admitted(health: AppHealthRegistry, *, slow: bool) -> bool:
        network = httpx.MockTransport(respond)
        async with open_client("http://fly.test", "token", 1.0, network, health) as (fly, _):
            deadline = Deadline.after(1)
            async with aclosing(fly.stream("birds", {}, deadline)) as parts:
                with pytest.raises(ProviderUnavailable):
                    async for _ in parts:
                        if slow:
                            await asyncio.sleep(max(0.0, deadline.remaining()))
        try:
            health.admit(Call("get", "birds", "GET", "apps/birds"), time.monotonic())
        except CircuitOpen:
            return False
        return True

    assert await is_admitted(AppHealthRegistry(settings=BreakerSettings(failures=1)), slow=True)
    assert not await is_admitted(
        AppHealthRegistry(settings=BreakerSettings(failures=1)), slow=False
    )


# --- over a socket -------------------------------------------------------------------------------


def test_little_is_received_ahead_of_the_reader() -> None:
    """Of a long list. Otherwise the kernel receives megabytes, and uvloop reads them in one go,
    while all other calls wait. By the event loop of the service, whose sockets have no options.
    """
    most = int(Path("/proc/sys/net/core/rmem_max").read_text())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + begun)
        await reader.read()
        writer.close()

    async def received() -> int:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            async with (
                open_client(f"http://{host}:{port}", "token") as (fly, _),
                aclosing(fly.stream("birds", {}, Deadline.after(60))) as parts,
            ):
                assert len(await anext(parts)) > 0
                (number,) = (
                    each.fd
                    for each in psutil.Process().net_connections("tcp4")
                    if getattr(each.raddr, "port", 0) == port
                )
                with socket.socket(fileno=os.dup(number)) as duplicate:
                    return duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    begun = json.dumps(machines(1000)).encode()[:-1]
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        # The kernel doubles what is set, for its own use.
        assert runner.run(received()) == 2 * min(RECEIVE_BYTES, most)


# --- over the emulator ---------------------------------------------------------------------------


async def test_the_stream_is_the_list(service: Service) -> None:
    """The same containers, and a last message that says that they are all."""
    made = {await service.create(f"roost-wren-{number}") for number in range(3)}
    messages = [each async for each in service.stub.StreamContainers(request(), timeout=30)]
    whole = await service.stub.ListContainers(pb.ListContainersRequest(), timeout=30)
    found = {each.container_id: each for message in messages for each in message.containers}
    assert set(found) == made
    assert found == {each.container_id: each for each in whole.containers}
    *parts, last = messages
    assert not any(part.complete for part in parts)
    assert (last.complete, last.container_count, len(last.containers)) == (True, 3, 0)
    assert last.HasField("list_time")


async def test_an_empty_app_is_a_complete_stream(service: Service) -> None:
    """One message, that no container was left out."""
    (only,) = [each async for each in service.stub.StreamContainers(request(), timeout=30)]
    assert (only.complete, only.container_count) == (True, 0)


async def test_a_stream_that_fails_has_the_status_of_its_error(service: Service) -> None:
    """An unknown app; the labels of a caller are checked."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        _ = [each async for each in service.stub.StreamContainers(request(app="none"), timeout=30)]
    assert read_failure(error.value).reason
    wrong = request(labels={"": "x"})
    with pytest.raises(grpc.aio.AioRpcError) as error:
        _ = [each async for each in service.stub.StreamContainers(wrong, timeout=30)]
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def request(**fields: Any) -> pb.StreamContainersRequest:
    """A request for all containers of the default app."""
    return pb.StreamContainersRequest(**fields)
