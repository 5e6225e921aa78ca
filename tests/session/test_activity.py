"""The activity source of a spec: an application that is in use is not paused."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from session_service.domain.next_action import Action
from tests.cases import each
from tests.eventually import eventually
from tests.session.ageing import IDLE, WARNING, events_of, explain_idle, make_idle, run_due_pass
from tests.session.harness import World, spec, world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from local.fly.emulator import Emulator

#: A preview whose /busy answers the status that /say/STATUS sets; at first 204. A redirect leads to
#: "/", which answers 200.
SCRIPT = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    said = 204
    def do_GET(self):
        status = 200
        if self.path.startswith("/say/"):
            Handler.said = int(self.path.rpartition("/")[2])
        elif self.path == "/busy?who=roost":
            status = Handler.said
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/")
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
HOOK = container_pb.ActivitySource(http_path="/busy?who=roost")
CONNECTIONS = container_pb.ActivitySource(connections_port=8080)


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """A replica. Sessions pause after ten idle minutes, one minute after the warning."""
    async with world(
        emulator, database_url, replicas=1, idle_timeout=IDLE, idle_warning=WARNING
    ) as running:
        yield running


async def with_hook(roost: World) -> pb.Session:
    """A session whose application reports by a hook whether it is in use."""
    command = [sys.executable, "-c", SCRIPT]
    return (await roost.one.start(spec=spec(command=command, activity=HOOK))).session


async def test_a_hook_that_reports_busy_keeps_a_session_active_and_moves_its_idle_time(
    roost: World,
) -> None:
    session = await with_hook(roost)
    await roost.counter(session, "/say/200")
    await make_idle(roost, session)
    before = await explain_idle(roost.one, session)
    assert await run_due_pass(roost.one) == {Action.PAUSE: 1}
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
    after = await explain_idle(roost.one, session)
    moved = after.idle_time.ToDatetime() - before.idle_time.ToDatetime()
    assert moved >= IDLE
    assert not [event for event in await events_of(roost, session) if event.type == "PAUSING"]


async def test_a_busy_application_gets_no_warning_of_a_pause(
    roost: World,
) -> None:
    session = await with_hook(roost)
    await roost.counter(session, "/say/200")
    await make_idle(roost, session, warned=False)
    await run_due_pass(roost.one)
    assert "IDLE_WARNING" not in [event.type for event in await events_of(roost, session)]
    await roost.counter(session, "/say/204")
    await make_idle(roost, session, warned=False)
    await run_due_pass(roost.one)
    assert [event.type for event in await events_of(roost, session)][-1] == "IDLE_WARNING"


@pytest.mark.parametrize("status", [204, 302, 404, 500])
async def test_a_hook_with_any_other_answer_does_not_keep_a_session_active(
    roost: World, status: int
) -> None:
    """A redirect is not followed: its target answers 200 to every request."""
    session = await with_hook(roost)
    await roost.counter(session, f"/say/{status}")
    await make_idle(roost, session)
    await run_due_pass(roost.one)
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSED


async def test_a_hook_that_hangs_cannot_keep_a_session_active(
    emulator: Emulator, database_url: str
) -> None:
    """It sends a byte now and then: each read is in time, but the whole answer is not."""
    drip = SCRIPT.replace(
        "        self.send_response(status)\n        if status == 302:",
        "        while status == 299:\n            import time\n"
        '            self.wfile.write(b"H"); time.sleep(0.05)\n'
        "        self.send_response(status)\n        if status == 302:",
    )
    assert drip != SCRIPT
    short = timedelta(seconds=0.5)
    async with world(
        emulator, database_url, replicas=1, idle_timeout=IDLE, activity_timeout=short
    ) as roost:
        started = await roost.one.start(
            spec=spec(command=[sys.executable, "-c", drip], activity=HOOK)
        )
        await roost.counter(started.session, "/say/299")
        await make_idle(roost, started.session)
        await run_due_pass(roost.one)
        assert (await roost.one.get(started.session.session_id)).state == pb.Session.STATE_PAUSED


@asynccontextmanager
async def connected(roost: World, session: pb.Session) -> AsyncGenerator[None]:
    """A connection through the provider's proxy to the guest: a request whose body never ends."""
    proxy = roost.emulator.proxy_url.rpartition(":")[2].strip("/")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy))
    host = session.container.url.split("/")[2]
    head = f"POST /slow HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1000\r\n\r\n"
    writer.write(head.encode() + b"x")
    await writer.drain()
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()
        del reader


async def test_an_open_connection_keeps_a_session_active_until_it_is_closed(roost: World) -> None:
    session = (await roost.one.start(spec=spec(activity=CONNECTIONS))).session
    other = (await roost.one.start("robin", spec=spec(activity=CONNECTIONS))).session
    async with connected(roost, session):

        async def seen() -> bool:
            listed = await roost.in_guest(session, "cat", "/proc/net/tcp", "/proc/net/tcp6")
            return any(
                words[1].endswith(":1F90") and words[3] == "01"
                for words in map(str.split, listed.splitlines())
            )

        assert await eventually(seen), "the guest never listed the connection"
        await make_idle(roost, session, other)
        await run_due_pass(roost.one)
        assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
        # Guests share the host's network. A connection to one must not count for another.
        assert (await roost.one.get(other.session_id)).state == pb.Session.STATE_PAUSED

    async def unseen() -> bool:
        return not await seen()

    assert await eventually(unseen), "the guest still lists the closed connection"
    await make_idle(roost, session)
    await run_due_pass(roost.one)
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSED


async def test_a_port_without_connections_does_not_keep_a_session_active(roost: World) -> None:
    elsewhere = container_pb.ActivitySource(connections_port=9)
    session = (await roost.one.start(spec=spec(activity=elsewhere))).session
    async with connected(roost, session):
        await make_idle(roost, session)
        await run_due_pass(roost.one)
        assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_PAUSED


@each("path", ["", "busy", "//evil.example/busy", "/%2f/x", "/../x", "/a#b"])
async def test_a_hook_path_that_could_name_another_host_is_rejected(
    roost: World, path: str
) -> None:
    source = container_pb.ActivitySource(http_path=path)
    with pytest.raises(grpc.aio.AioRpcError, match=r"spec\.activity\.http_path"):
        await roost.one.start(spec=spec(activity=source))
