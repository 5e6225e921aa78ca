"""The demo's first scenario, step by step: each call and its expected answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

from local.demo.calls import ScenarioAborted, answered, failure, since
from local.demo.reply_text import continuity_of, kept, outcome_of, short, state_of
from roost.session.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.demo.preview import Previews
    from local.demo.report import Report
    from local.demo.session_client import SessionClient
    from local.stack.stack import Stack

    T = TypeVar("T")

KEY = pb.SessionKey(project_id="demo", user_id="you")
IMAGE = "roost/counter"
#: Longest wait, in s, for a session to settle: EndSession suspends the container after its answer.
SETTLE_SECONDS = 15.0
TRANSIENT_STATES = (pb.Session.STATE_STARTING, pb.Session.STATE_PAUSING, pb.Session.STATE_ENDING)


class SessionScenario:
    """Plays the scenario against a running stack and reports every answer."""

    def __init__(
        self, stack: Stack, client: SessionClient, previews: Previews, report: Report
    ) -> None:
        self._stack = stack
        self._client = client
        self._report = report
        self._previews = previews

    async def play(self) -> None:
        """Play the whole scenario. An unexpected error counts as a wrong value and ends it."""
        with contextlib.suppress(ScenarioAborted):
            await self._scenario()

    async def _scenario(self) -> None:
        old = await self._start("CREATED", "NONE", counter=0)
        await self._click(old, 1)
        await self._click(old, 2)
        await self._stop(old)
        await self._start("RESUMED", "MEMORY", counter=2, same_as=old)
        await self._kill_and_restart()
        await self._start("REUSED", "MEMORY", counter=2, same_as=old)
        new = await self._start("CREATED", "NONE", counter=0, fresh=True, other_than=old)
        await self._expect_state(old, "ENDED")
        await self._failing_undelete(old, "LIVE_SESSION_EXISTS")
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
        checks: dict[str, tuple[object, object]] = {
            "outcome": (outcome, outcome_of(reply)),
            "continuity": (continuity, continuity_of(reply)),
            "state": ("ACTIVE", state_of(session)),
        }
        if continuity == "MEMORY":
            checks["continuity verified"] = (True, reply.continuity_verified)
        if same_as:
            checks["session"] = (short(same_as), short(session))
        if other_than:
            checks["another session"] = (True, session.session_id != other_than.session_id)
        answer = f"{outcome_of(reply)}, session {short(session)}{kept(reply)}"
        self._report.row(call, answer, spent, checks)
        await self._read(session, counter)
        return session

    async def _read(self, session: pb.Session, expected: int) -> None:
        await self._get(session, "/", expected)

    async def _click(self, session: pb.Session, expected: int) -> None:
        await self._get(session, "/click", expected)

    async def _get(self, session: pb.Session, path: str, expected: int) -> None:
        came, spent = await self._previews.get(session, path)
        checks = {"counter": (str(expected), came)}
        self._report.row(f"GET {path} of the preview", f"counter {came}", spent, checks)

    async def _stop(self, session: pb.Session) -> None:
        await self._move("StopSession", lambda: self._client.stop(session.session_id), "PAUSED")

    async def _end(self, session: pb.Session) -> None:
        call = "EndSession, new session"
        await self._move(call, lambda: self._client.end(session.session_id), "ENDED")

    async def _undelete(self, session: pb.Session) -> None:
        call = "UndeleteSession, old session"
        await self._move(call, lambda: self._client.undelete(session.session_id), "PAUSED")

    async def _expect_state(self, session: pb.Session, expected: str) -> None:
        call = "GetSession, old session"
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            seen, spent = await self._ask(call, lambda: self._client.get(session.session_id))
            if seen.state not in TRANSIENT_STATES or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        self._state_row(call, seen, expected, spent)

    async def _failing_undelete(self, session: pb.Session, reason: str) -> None:
        error, spent = await failure(lambda: self._client.undelete(session.session_id))
        came = error.reason or str(error) if error else "no error"
        checks = {"reason": (reason, came)}
        self._report.row("UndeleteSession, old session", f"error: {came}", spent, checks)

    async def _kill_and_restart(self) -> None:
        began = time.monotonic()
        await self._stack.kill("session_service")
        await self._stack.start("session_service")
        self._report.row(
            "kill -9 session_service, start it again", "it is serving", since(began), {}
        )

    def _state_row(self, call: str, session: pb.Session, expected: str, spent: float) -> None:
        state = state_of(session)
        answer = f"{state}, session {short(session)}"
        self._report.row(call, answer, spent, {"state": (expected, state)})

    async def _move(self, name: str, call: Callable[[], pb.Session], expected: str) -> None:
        session, spent = await self._ask(name, call)
        self._state_row(name, session, expected, spent)

    async def _ask(self, name: str, call: Callable[[], T]) -> tuple[T, float]:
        return await answered(self._report, name, call)
