"""The demo's story, step by step: what is called, and what must come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from local.client import Refused
from roost.session.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.client import SessionClient
    from local.report import Report
    from local.stack import Stack
    from roost.session.v1.session_service_pb2 import StartSessionResponse

    T = TypeVar("T")

KEY = pb.SessionKey(project_id="demo", user_id="you")
IMAGE = "roost/counter"
#: Ending puts the old container to sleep after its answer.
SETTLE_SECONDS = 15.0
NOT_SETTLED = (pb.Session.STATE_STARTING, pb.Session.STATE_PAUSING, pb.Session.STATE_ENDING)


class StoryOver(Exception):
    """A call failed that the rest of the story needs."""


class Demo:
    """Plays the story against a running stack; the report takes each answer as it came."""

    def __init__(self, stack: Stack, client: SessionClient, report: Report) -> None:
        self._stack = stack
        self._client = client
        self._report = report
        # Nothing from the environment: a developer's HTTP_PROXY is not for loopback.
        self._http = httpx.AsyncClient(base_url=stack.proxy_url, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def play(self) -> None:
        """The whole story. An error that is no part of it is a wrong value and ends it."""
        with contextlib.suppress(StoryOver):
            await self._story()

    async def _story(self) -> None:
        old = await self._start("CREATED", "NONE", counter=0)
        await self._click(old, 1)
        await self._click(old, 2)
        await self._stop(old)
        await self._start("RESUMED", "MEMORY", counter=2, same_as=old)
        await self._crash()
        await self._start("REUSED", "MEMORY", counter=2, same_as=old)
        new = await self._start("CREATED", "NONE", counter=0, fresh=True, other_than=old)
        await self._look(old, "ENDED")
        await self._refused_undelete(old, "LIVE_SESSION_EXISTS")
        await self._end(new)
        await self._undelete(old)
        await self._start("RESUMED", "MEMORY", counter=2, same_as=old)

    async def _start(
        self,
        outcome: str,
        continuity: str,
        counter: int,
        *,
        fresh: bool = False,
        same_as: pb.Session | None = None,
        other_than: pb.Session | None = None,
    ) -> pb.Session:
        mode = pb.START_MODE_FRESH if fresh else pb.START_MODE_UNSPECIFIED
        call = "StartSession FRESH" if fresh else "StartSession"
        reply, spent = await self._ask(call, lambda: self._client.start(KEY, IMAGE, mode))
        session = reply.session
        told: dict[str, tuple[object, object]] = {
            "outcome": (outcome, _outcome(reply)),
            "continuity": (continuity, _continuity(reply)),
            "state": ("ACTIVE", _state(session)),
        }
        if continuity == "MEMORY":
            told["continuity proved"] = (True, reply.continuity_verified)
        if same_as:
            told["session"] = (_short(same_as), _short(session))
        if other_than:
            told["another session"] = (True, session.session_id != other_than.session_id)
        answer = f"{_outcome(reply)}, session {_short(session)}{_kept(reply)}"
        self._report.row(call, answer, spent, told)
        await self._read(session, counter)
        return session

    async def _read(self, session: pb.Session, expected: int) -> None:
        await self._get(session, "/", expected)

    async def _click(self, session: pb.Session, expected: int) -> None:
        await self._get(session, "/click", expected)

    async def _get(self, session: pb.Session, path: str, expected: int) -> None:
        # The address is the one of the reply; its name leads to the proxy, which we know.
        host = urlsplit(session.container.url).netloc
        began = time.monotonic()
        try:
            answer = await self._http.get(path, headers={"host": host}, timeout=15.0)
            came = answer.text if answer.is_success else f"HTTP {answer.status_code}"
        except httpx.HTTPError as error:
            came = repr(error)
        spent = 1000 * (time.monotonic() - began)
        told = {"counter": (str(expected), came)}
        self._report.row(f"GET {path} of the preview", f"counter {came}", spent, told)

    async def _stop(self, session: pb.Session) -> None:
        await self._move("StopSession", lambda: self._client.stop(session.session_id), "PAUSED")

    async def _end(self, session: pb.Session) -> None:
        call = "EndSession, the new one"
        await self._move(call, lambda: self._client.end(session.session_id), "ENDED")

    async def _undelete(self, session: pb.Session) -> None:
        call = "UndeleteSession, the old one"
        await self._move(call, lambda: self._client.undelete(session.session_id), "PAUSED")

    async def _look(self, session: pb.Session, expected: str) -> None:
        call = "GetSession, the old one"
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            seen, spent = await self._ask(call, lambda: self._client.get(session.session_id))
            if seen.state not in NOT_SETTLED or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        self._state_row(call, seen, expected, spent)

    async def _refused_undelete(self, session: pb.Session, reason: str) -> None:
        began = time.monotonic()
        try:
            await asyncio.to_thread(self._client.undelete, session.session_id)
            came = "no error"
        except Refused as refused:
            came = refused.reason or str(refused)
        spent = 1000 * (time.monotonic() - began)
        told = {"reason": (reason, came)}
        self._report.row("UndeleteSession, the old one", f"refused: {came}", spent, told)

    async def _crash(self) -> None:
        began = time.monotonic()
        await self._stack.kill("session_service")
        await self._stack.start("session_service")
        spent = 1000 * (time.monotonic() - began)
        self._report.row("kill -9 session_service, start it anew", "it serves", spent, {})

    def _state_row(self, call: str, session: pb.Session, expected: str, spent: float) -> None:
        state = _state(session)
        answer = f"{state}, session {_short(session)}"
        self._report.row(call, answer, spent, {"state": (expected, state)})

    async def _move(self, name: str, call: Callable[[], pb.Session], expected: str) -> None:
        session, spent = await self._ask(name, call)
        self._state_row(name, session, expected, spent)

    async def _ask(self, name: str, call: Callable[[], T]) -> tuple[T, float]:
        """The blocking client's answer, from a thread, and the milliseconds that it took."""
        began = time.monotonic()
        try:
            answer = await asyncio.to_thread(call)
        except Refused as refused:
            spent = 1000 * (time.monotonic() - began)
            came = refused.reason or refused.code.name
            self._report.row(name, f"refused: {came}", spent, {"answer": ("a session", refused)})
            raise StoryOver from refused
        return answer, 1000 * (time.monotonic() - began)


def _outcome(reply: StartSessionResponse) -> str:
    return pb.StartOutcome.Name(reply.outcome).removeprefix("START_OUTCOME_")


def _continuity(reply: StartSessionResponse) -> str:
    return pb.Continuity.Name(reply.continuity).removeprefix("CONTINUITY_")


def _kept(reply: StartSessionResponse) -> str:
    """What the user got back, in words."""
    if reply.continuity in (pb.CONTINUITY_UNSPECIFIED, pb.CONTINUITY_NONE):
        return ""
    return f", {_continuity(reply)} kept: {'proved' if reply.continuity_verified else 'not proved'}"


def _state(session: pb.Session) -> str:
    return pb.Session.State.Name(session.state).removeprefix("STATE_")


def _short(session: pb.Session) -> str:
    """The end of the id: a UUIDv7 begins with the time, which is nearly the same for all."""
    return session.session_id[-8:]
