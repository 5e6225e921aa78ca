"""One HTTP call to Fly: paced, bounded, authenticated, repeated only where that is safe."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from container_service.errors import (
    CircuitOpen,
    OutcomeUnknown,
    ProviderRateLimited,
    ProviderUnavailable,
    ServiceError,
)
from container_service.fly.budget import backoff
from container_service.fly.errors import classify, read_refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from container_service.deadlines import Deadline
    from container_service.fly.pacing import Pacing
    from container_service.fly.weather import Weather

log = logging.getLogger(__name__)

#: Calls in flight at once. httpx's pool slows down with every call in flight, and a `wait` is in
#: flight for most of a minute: the two kinds have their own room, so that neither queues behind
#: the other.
SHORT_CALLS = 32
LONG_CALLS = 128

CONNECT_SECONDS = 5.0
REPEATS = 3
LEASE_HEADER = "fly-machine-lease-nonce"


@dataclass(frozen=True, slots=True)
class Call:
    """One call, with what may be done about its failure."""

    #: What Fly counts it as, and on whom: a machine's id, or an app's name.
    action: str
    subject: str
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    nonce: str = field(default="", repr=False)
    #: Whether sending it twice is as good as once.
    repeatable: bool = False
    #: Whether it is a wait, which takes its time.
    long: bool = False
    seconds: float = 30.0

    @property
    def app(self) -> str:
        """The app that it is about; all paths that are asked for begin with theirs."""
        return self.path.split("/", 2)[1]

    @property
    def changes(self) -> bool:
        """Whether it changes something, so that a lost answer leaves the outcome unknown."""
        return self.method != "GET"


class NotSent(Exception):
    """The connection was never made: Fly has not seen the call."""


class Transport:
    """Sends calls over one connection pool, for the life of the process."""

    def __init__(self, http: httpx.AsyncClient, pacing: Pacing, weather: Weather) -> None:
        self._http = http
        self._pacing = pacing
        self._weather = weather
        self._short = asyncio.Semaphore(SHORT_CALLS)
        self._long = asyncio.Semaphore(LONG_CALLS)

    async def send(self, call: Call, deadline: Deadline) -> Any:
        """The answer's JSON (None for an empty one). Raises ServiceError, by the deadline."""
        # A change that may have been made stays so, whatever becomes of its repeats.
        unknown: OutcomeUnknown | None = None
        for attempt in range(1, REPEATS + 1):
            try:
                return await self._send_paced(call, deadline)
            except NotSent as error:
                failure: ServiceError = ProviderUnavailable("the provider cannot be reached")
                failure.__cause__ = error.__cause__
            except CircuitOpen as held_back:
                raise unknown or held_back from None
            except ProviderUnavailable as error:
                if not call.repeatable:
                    raise
                failure = error
                unknown = error if isinstance(error, OutcomeUnknown) else unknown
            pause = backoff(attempt, random.random())
            if attempt == REPEATS or not self._may_repeat(call, pause, deadline):
                raise unknown or failure
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _may_repeat(self, call: Call, pause: float, deadline: Deadline) -> bool:
        if pause >= deadline.remaining():
            return False
        return self._weather.may_repeat(call, time.monotonic())

    async def _send_paced(self, call: Call, deadline: Deadline) -> Any:
        """Wait for the rate's leave, send; a call refused for its rate was not done: ask again."""
        while True:
            await self._await_turn(call, deadline)
            try:
                return await self._send_once(call, deadline)
            except ProviderRateLimited as error:
                delay = self._pacing.refused(call.action, call.subject, time.monotonic())
                delay = max(delay, error.retry_after or 0.0)
                if delay >= deadline.remaining():
                    raise
                # The drained bucket paces the next turn; beyond that only Fly's own word counts.
                await asyncio.sleep(max(0.0, (error.retry_after or 0.0) - 1.0))

    async def _await_turn(self, call: Call, deadline: Deadline) -> None:
        self._weather.check(call, time.monotonic())
        delay = self._pacing.reserve(
            call.action, call.subject, time.monotonic(), deadline.remaining()
        )
        if delay is None:
            due = self._pacing.due(call.action, call.subject, time.monotonic())
            raise ProviderRateLimited(
                f"more {call.action} calls wait for {call.subject} than the deadline has room for",
                retry_after=max(1.0, due) + random.uniform(0.0, 1.0),
            )
        if delay:
            await asyncio.sleep(delay)

    async def _send_once(self, call: Call, deadline: Deadline) -> Any:
        if deadline.passed:
            raise ProviderUnavailable("no time was left to ask the provider")
        asked: float | None = None
        try:
            async with asyncio.timeout(min(call.seconds, deadline.remaining())):
                async with self._long if call.long else self._short:
                    # Now, and not before: it may have waited here, or for its rate, for long.
                    self._weather.admit(call, time.monotonic())
                    asked = time.monotonic()
                    response = await self._http.request(
                        call.method,
                        call.path,
                        params=dict(call.query),
                        json=call.body,
                        headers={LEASE_HEADER: call.nonce} if call.nonce else None,
                    )
        except httpx.PoolTimeout as error:
            raise NotSent from error
        except (httpx.HTTPError, TimeoutError) as error:
            self._note_lost(call, error, asked)
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise NotSent from error
            raise _lost(call, error, sent=asked is not None) from error
        return self._read(call, response, asked)

    def _note_lost(self, call: Call, error: Exception, asked: float | None) -> None:
        if asked is None:
            return
        if isinstance(error, TimeoutError):
            self._weather.timed_out(call, asked, time.monotonic())
        else:
            self._weather.lost(call, asked, time.monotonic())

    def _read(self, call: Call, response: httpx.Response, asked: float) -> Any:
        if response.is_success:
            self._weather.told(call, None, asked, time.monotonic())
            return _parse(response)
        refusal = read_refusal(
            response.status_code,
            response.headers,
            response.content,
            changes=call.changes,
            nonce=call.nonce,
        )
        self._weather.told(call, refusal, asked, time.monotonic())
        log.info(
            "Fly answered %s on %s with %d",
            call.action,
            call.subject,
            refusal.status,
            extra={
                "action": "provider_refused",
                "provider_action": call.action,
                "subject": call.subject,
                "http_status": refusal.status,
                "fly_status": refusal.code,
                "fly_request_id": refusal.request_id,
            },
        )
        raise classify(refusal)


@asynccontextmanager
async def connect(
    base_url: str,
    token: str,
    pacing: Pacing,
    weather: Weather,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncGenerator[Transport]:
    """A transport to Fly (or to what stands in for it), closed at the end."""
    encrypted = base_url.startswith("https:")
    async with httpx.AsyncClient(
        base_url=base_url.rstrip("/") + "/v1/",
        headers={"authorization": authorization(token), "user-agent": "roost"},
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx.Limits(
            max_connections=SHORT_CALLS + LONG_CALLS,
            max_keepalive_connections=SHORT_CALLS,
            keepalive_expiry=30.0,
        ),
        transport=transport,
        # A proxy that the environment names tunnels TLS; over plain HTTP it would read the token.
        trust_env=encrypted,
        # Reading the authorities takes 30 ms.
        verify=encrypted,
    ) as http:
        yield Transport(http, pacing, weather)


def authorization(token: str) -> str:
    """The header's value: macaroons go as FlyV1, others as Bearer; a scheme given is kept."""
    scheme, _, rest = token.partition(" ")
    if rest and scheme.lower() in ("flyv1", "bearer"):
        return token
    macaroon = any(part.strip().startswith(("fm1r_", "fm1a_", "fm2_")) for part in token.split(","))
    return f"FlyV1 {token}" if macaroon else f"Bearer {token}"


def _lost(call: Call, error: Exception, *, sent: bool) -> ServiceError:
    what = "did not answer in time" if isinstance(error, TimeoutError) else "broke off"
    if call.changes and sent:
        return OutcomeUnknown(f"the provider {what} on {call.action}: it may have been done")
    return ProviderUnavailable(f"the provider {what} on {call.action}")


def _parse(response: httpx.Response) -> Any:
    """The body as JSON: exec answers it as an octet stream too."""
    if not response.content:
        return None
    try:
        return json.loads(response.content)
    except ValueError:
        return None
