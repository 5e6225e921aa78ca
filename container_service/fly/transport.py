"""Send calls to the Machines API: rate-limited, authenticated, retried only if that is safe."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from container_service.containers.errors import (
    CircuitOpen,
    OutcomeUnknown,
    ProviderRateLimited,
    ProviderUnavailable,
    ServiceError,
)
from container_service.fly.app_health import MEANINGFUL_TIMEOUT
from container_service.fly.connection import closed_as_opened, read_in_small_amounts
from container_service.fly.errors import classify, read_error_response
from container_service.fly.retry_budget import backoff

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from container_service.containers.deadlines import Deadline
    from container_service.fly.app_health import AppHealthRegistry
    from container_service.fly.call import Call
    from container_service.fly.rate_limiter import RateLimiter

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The greatest numbers of short and of long calls in flight at once. They are limited, because
#: httpx's pool slows down with each call in flight. The limits are separate, because a `wait` takes
#: most of a minute, and short calls must not queue behind it.
SHORT_CALLS = 32
LONG_CALLS = 128

CONNECT_SECONDS = 5.0
#: The most bytes of a streamed answer that are handled at once: about ten machines, 1 ms of work.
PIECE_BYTES = 16 * 1024
ATTEMPTS = 3
LEASE_HEADER = "fly-machine-lease-nonce"


class NotSent(Exception):
    """No connection was made, so Fly has not seen the call."""


class SlowReader(Exception):
    """A stream failed while its reader was slow, which says nothing about Fly. The cause says how
    it failed.
    """


class Transport:
    """Sends calls over one connection pool, for the life of the process."""

    def __init__(
        self, http: httpx.AsyncClient, limiter: RateLimiter, health: AppHealthRegistry
    ) -> None:
        self._http = http
        self._limiter = limiter
        self._health = health
        self._short = asyncio.Semaphore(SHORT_CALLS)
        self._long = asyncio.Semaphore(LONG_CALLS)

    async def send(self, call: Call, deadline: Deadline) -> Any:
        """The JSON of the answer; None if it is empty. Raises ServiceError, by the deadline.

        A call that was never sent is retried. A call whose answer was lost is retried only if it is
        repeatable. If the answer to one attempt of a change was lost, Fly may have made the change.
        OutcomeUnknown is then raised also if a later attempt fails without being sent, because the
        error of the later attempt would say that nothing was changed.
        """

        async def attempt() -> Any:
            async with self._opened(call, deadline) as response:
                await response.aread()
            return _parse(response)

        return await self._retried(call, deadline, attempt)

    async def read(
        self, call: Call, deadline: Deadline, use: Callable[[AsyncIterator[bytes]], Awaitable[T]]
    ) -> T:
        """As `send`, but `use` reads the body, in pieces of at most PIECE_BYTES. It is called again
        for each attempt.
        """

        async def attempt() -> T:
            async with self._opened(call, deadline) as response:
                return await use(response.aiter_bytes(PIECE_BYTES))

        return await self._retried(call, deadline, attempt)

    async def stream(self, call: Call, deadline: Deadline) -> AsyncGenerator[bytes]:
        """The body of the answer to a GET, in pieces of at most PIECE_BYTES as they arrive. Ends
        normally only after the whole body. Raises ServiceError, by the deadline.

        The call is retried as in `send` until its answer begins. After that a failure is raised,
        because the caller may have used a part of the answer. A failure counts against Fly only if
        Fly was silent: not if the caller was away for so long that the deadline passed meanwhile,
        or that Fly may have closed the connection.
        """
        async with AsyncExitStack() as stack:
            response = await self._retried(
                call, deadline, lambda: stack.enter_async_context(self._opened(call, deadline))
            )
            pieces = response.aiter_bytes(PIECE_BYTES)
            away = 0.0
            while True:
                asked_at = time.monotonic()
                try:
                    # Not around the `yield`: it would cancel what the caller does with a piece.
                    async with asyncio.timeout(deadline.remaining()):
                        piece = await anext(pieces, None)
                except (httpx.HTTPError, TimeoutError) as error:
                    late = isinstance(error, TimeoutError) and (
                        time.monotonic() - asked_at < MEANINGFUL_TIMEOUT
                    )
                    if late or away >= MEANINGFUL_TIMEOUT:
                        raise SlowReader from error
                    raise
                if piece is None:
                    return
                given_at = time.monotonic()
                yield piece
                away = max(away, time.monotonic() - given_at)

    async def _retried(
        self, call: Call, deadline: Deadline, attempt: Callable[[], Awaitable[T]]
    ) -> T:
        unknown: OutcomeUnknown | None = None
        for number in range(1, ATTEMPTS + 1):
            try:
                return await self._send_at_rate(call, deadline, attempt)
            except NotSent as error:
                failure: ServiceError = ProviderUnavailable(
                    "the provider cannot be reached: nothing was sent; retry later"
                )
                failure.__cause__ = error.__cause__
            except CircuitOpen as error:
                raise unknown or error from None
            except ProviderUnavailable as error:
                if not call.repeatable:
                    raise
                failure = error
                unknown = error if isinstance(error, OutcomeUnknown) else unknown
            delay = backoff(number, random.random())
            if number == ATTEMPTS or not self._may_retry(call, delay, deadline):
                raise unknown or failure
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    def _may_retry(self, call: Call, delay: float, deadline: Deadline) -> bool:
        if delay >= deadline.remaining():
            return False
        return self._health.may_retry(call, time.monotonic())

    async def _send_at_rate(
        self, call: Call, deadline: Deadline, attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """Wait for the rate limit, then send. Retry after a 429: Fly did not carry out the call."""
        while True:
            await self._wait_for_rate_limit(call, deadline)
            try:
                return await attempt()
            except ProviderRateLimited as error:
                delay = self._limiter.record_rejection(call.action, call.subject, time.monotonic())
                delay = max(delay, error.retry_after or 0.0)
                if delay >= deadline.remaining():
                    raise
                # The drained bucket delays the next attempt by up to a second already: sleep only
                # for what Fly's Retry-After asks beyond that.
                await asyncio.sleep(max(0.0, (error.retry_after or 0.0) - 1.0))

    async def _wait_for_rate_limit(self, call: Call, deadline: Deadline) -> None:
        self._health.check(call, time.monotonic())
        delay = self._limiter.reserve(
            call.action, call.subject, time.monotonic(), deadline.remaining()
        )
        if delay is None:
            wait = self._limiter.delay(call.action, call.subject, time.monotonic())
            raise ProviderRateLimited(
                f"the provider's rate limit lets this {call.action} call on {call.subject} go only"
                " after the deadline: retry later",
                retry_after=max(1.0, wait) + random.uniform(0.0, 1.0),
            )
        if delay:
            await asyncio.sleep(delay)

    @asynccontextmanager
    async def _opened(self, call: Call, deadline: Deadline) -> AsyncGenerator[httpx.Response]:
        """Send, and open the answer of a success, whose body the block reads.

        The time until the block ends is limited; for a streamed call, the time until it begins.
        """
        if deadline.passed:
            raise ProviderUnavailable(
                "the deadline passed before the call could be sent: retry with a longer deadline"
            )
        sent_at: float | None = None
        limit = asyncio.timeout(min(call.seconds, deadline.remaining()))
        try:
            async with limit, AsyncExitStack() as stack:
                # A stream lasts as long as its reader takes.
                slow = call.long or call.streamed
                await stack.enter_async_context(self._long if slow else self._short)
                # Checked again here, because the wait for the rate limit and for a free
                # connection may have been long enough for the circuit to open.
                self._health.admit(call, time.monotonic())
                sent_at = time.monotonic()
                with closed_as_opened():
                    response = await stack.enter_async_context(self._exchange(call))
                if not response.is_success:
                    await response.aread()
                    raise self._rejected(call, response, sent_at)
                if call.streamed:
                    limit.reschedule(None)
                    read_in_small_amounts(response)
                yield response
        except httpx.PoolTimeout as error:
            raise NotSent from error
        except (httpx.HTTPError, TimeoutError) as error:
            self._record_no_response(call, error, sent_at)
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise NotSent from error
            raise _lost(call, error, sent=sent_at is not None) from error
        except SlowReader as slow:
            raise ProviderUnavailable(
                f"the answer to {call.action} was read too slowly: retry"
            ) from slow.__cause__
        self._health.record_response(call, None, sent_at, time.monotonic())

    def _exchange(self, call: Call) -> AbstractAsyncContextManager[httpx.Response]:
        silence = call.seconds if call.streamed else None
        return self._http.stream(
            call.method,
            call.path,
            params=dict(call.query),
            json=call.body,
            headers={LEASE_HEADER: call.nonce} if call.nonce else None,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS, read=silence),
        )

    def _record_no_response(self, call: Call, error: Exception, sent_at: float | None) -> None:
        if sent_at is None:
            return
        if isinstance(error, TimeoutError):
            self._health.record_timeout(call, sent_at, time.monotonic())
        else:
            self._health.record_failure(call, sent_at, time.monotonic())

    def _rejected(self, call: Call, response: httpx.Response, sent_at: float) -> ServiceError:
        """Record and log an answer that is no success; the error to raise."""
        error = read_error_response(
            response.status_code,
            response.headers,
            response.content,
            changes=call.changes,
            nonce=call.nonce,
        )
        self._health.record_response(call, error, sent_at, time.monotonic())
        log.info(
            "Fly answered %s on %s with status %d",
            call.action,
            call.subject,
            error.status,
            extra={
                "action": "provider_error",
                "provider_action": call.action,
                "subject": call.subject,
                "http_status": error.status,
                "fly_status": error.code,
                "fly_request_id": error.request_id,
            },
        )
        return classify(error)


@asynccontextmanager
async def connect(
    base_url: str,
    token: str,
    limiter: RateLimiter,
    health: AppHealthRegistry,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncGenerator[Transport]:
    """Open a transport; `transport` replaces the network in tests."""
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
        # Use a proxy from the environment (HTTP_PROXY) for TLS only: it cannot read what it
        # tunnels. Over plain HTTP it could read the token.
        trust_env=encrypted,
        # Loading the certificate authorities takes 30 ms, and plain HTTP needs none.
        verify=encrypted,
    ) as http:
        yield Transport(http, limiter, health)


def authorization(token: str) -> str:
    """The Authorization header: FlyV1 for macaroons, Bearer otherwise; a given scheme is kept."""
    scheme, _, rest = token.partition(" ")
    if rest and scheme.lower() in ("flyv1", "bearer"):
        return token
    macaroon = any(part.strip().startswith(("fm1r_", "fm1a_", "fm2_")) for part in token.split(","))
    return f"FlyV1 {token}" if macaroon else f"Bearer {token}"


def _lost(call: Call, error: Exception, *, sent: bool) -> ServiceError:
    if isinstance(error, TimeoutError):
        problem = f"the provider did not answer {call.action} in time"
    else:
        problem = f"the connection to the provider broke during {call.action}"
    if call.changes and sent:
        return OutcomeUnknown(f"{problem}, and may have carried it out: read the state, then retry")
    return ProviderUnavailable(f"{problem}: retry")


def _parse(response: httpx.Response) -> Any:
    """The body as JSON, whatever its content type: that of exec is an octet stream."""
    if not response.content:
        return None
    try:
        return json.loads(response.content)
    except ValueError:
        return None
