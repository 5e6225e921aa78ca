"""The HTTP calls over a scripted network: requests, retries, secrets."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import (
    LeaseLost,
    OutcomeUnknown,
    ProviderRateLimited,
    ProviderUnavailable,
)
from container_service.containers.model import ContainerRef, ContainerState
from container_service.fly.client import FlyClient, open_client
from container_service.fly.transport import LONG_CALLS, authorization

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

REF = ContainerRef("birds", "1857156b526dd8")
MACHINE = {"id": REF.container_id, "state": "started"}


class Script:
    """A network with these answers in order, the last one repeated.

    An answer is a response, an exception to raise, or an async function of the request.
    """

    def __init__(self, *answers: Any) -> None:
        self._answers: Iterator[Any] = iter(answers)
        self._last: Any = None
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.requests.append(request)
        self._last = next(self._answers, self._last)
        if isinstance(self._last, Exception):
            raise self._last
        if isinstance(self._last, httpx.Response):
            return self._last
        answer: httpx.Response = await self._last(request)
        return answer


def answer(status: int = 200, body: Any = None, **headers: str) -> Callable[..., Any]:
    """An answer that can be given several times."""

    async def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json=body, headers=headers)

    return respond


@asynccontextmanager
async def client(script: Script, token: str = "secret-token") -> AsyncGenerator[FlyClient]:
    """A client over a scripted network."""
    transport = httpx.MockTransport(script)
    async with open_client("http://fly.test", token, transport=transport) as (fly, _):
        yield fly


def soon() -> Deadline:
    return Deadline.after(30)


async def test_requests_have_the_paths_headers_and_bodies_of_fly() -> None:
    script = Script(answer(200, MACHINE))
    fly: FlyClient
    async with client(script) as fly:
        await fly.get(REF, soon())
        await fly.stop(REF, "a-nonce", 2.0, soon())
        await fly.destroy(REF, "", soon(), force=True)
        states = {ContainerState.STOPPED, ContainerState.SUSPENDED}
        await fly.wait(REF, states, 90, Deadline.after(20))
    stem = "/v1/apps/birds/machines/1857156b526dd8"
    get, stop, destroy, wait = script.requests
    assert (get.method, get.url.path) == ("GET", stem)
    assert get.headers["authorization"] == "Bearer secret-token"
    assert "fly-machine-lease-nonce" not in get.headers
    assert (stop.method, stop.url.path) == ("POST", f"{stem}/stop")
    assert stop.headers["fly-machine-lease-nonce"] == "a-nonce"
    assert json.loads(stop.content) == {"timeout": "2s"}
    assert (destroy.method, destroy.url.query) == ("DELETE", b"force=true")
    assert set(wait.url.params) == {"state", "timeout"}
    assert wait.url.params["state"] == "stopped,suspended"
    # Whole seconds, fewer than are left.
    assert 5 <= int(wait.url.params["timeout"]) <= 19


@pytest.mark.parametrize(
    ("token", "header"),
    [
        ("plain", "Bearer plain"),
        ("fm2_abc,fm2_def", "FlyV1 fm2_abc,fm2_def"),
        ("fo1_x,fm1r_abc", "FlyV1 fo1_x,fm1r_abc"),
        ("FlyV1 fm2_abc", "FlyV1 fm2_abc"),
        ("Bearer plain", "Bearer plain"),
    ],
)
def test_the_authorization_scheme_fits_the_token(token: str, header: str) -> None:
    assert authorization(token) == header


async def test_a_read_is_retried() -> None:
    script = Script(httpx.ReadError("reset"), answer(503), answer(200, MACHINE))
    async with client(script) as fly:
        assert (await fly.get(REF, soon())).state is ContainerState.STARTED
    assert len(script.requests) == 3


async def test_a_read_is_retried_twice_at_most() -> None:
    script = Script(answer(502))
    async with client(script) as fly:
        with pytest.raises(ProviderUnavailable):
            await fly.get(REF, soon())
    assert len(script.requests) == 3


@pytest.mark.parametrize("lost", [httpx.ReadError("reset"), httpx.RemoteProtocolError("closed")])
async def test_a_change_whose_answer_is_lost_is_not_retried(lost: Exception) -> None:
    script = Script(lost)
    async with client(script) as fly:
        with pytest.raises(OutcomeUnknown):
            await fly.suspend(REF, "", soon())
        with pytest.raises(OutcomeUnknown):
            await fly.execute(REF, ["true"], 1, soon())
    assert len(script.requests) == 2


async def test_a_change_that_was_not_sent_is_retried() -> None:
    script = Script(httpx.ConnectError("refused"), answer(200, {"ok": True}))
    async with client(script) as fly:
        await fly.suspend(REF, "", soon())
    assert len(script.requests) == 2


async def test_a_change_that_cannot_be_sent_is_not_outcome_unknown() -> None:
    script = Script(httpx.ConnectError("refused"))
    async with client(script) as fly:
        with pytest.raises(ProviderUnavailable) as failed:
            await fly.suspend(REF, "", soon())
    assert not isinstance(failed.value, OutcomeUnknown)


async def test_an_idempotent_change_is_retried() -> None:
    script = Script(httpx.ReadError("reset"), answer(200, {"ok": True}))
    async with client(script) as fly:
        await fly.set_cordoned(REF, "", soon(), cordoned=True)
    assert len(script.requests) == 2


async def test_no_call_outlives_its_deadline() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    began, script = time.monotonic(), Script(never)
    async with client(script) as fly:
        # A busy machine may send nothing before a short deadline: then a longer one is tried.
        seconds = 0.1
        while not script.requests:
            with pytest.raises(ProviderUnavailable) as late:
                await fly.start(REF, "", Deadline.after(seconds))
            assert isinstance(late.value, OutcomeUnknown) or not script.requests
            seconds *= 10
        with pytest.raises(ProviderUnavailable):
            await fly.get(REF, Deadline.after(0.1))
        with pytest.raises(ProviderUnavailable):
            await fly.get(REF, Deadline.after(-1))
    # The transport itself waits for 30 s.
    assert time.monotonic() - began < 20


async def test_waits_do_not_delay_short_calls() -> None:
    release = asyncio.Event()

    async def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/wait"):
            await release.wait()
        return httpx.Response(200, json=MACHINE)

    async with client(Script(respond)) as fly:
        refs = [ContainerRef("birds", f"m{number}") for number in range(LONG_CALLS + 8)]
        waits = [
            asyncio.ensure_future(fly.wait(ref, {ContainerState.STARTED}, 5, soon()))
            for ref in refs
        ]
        await asyncio.sleep(0)
        assert (await fly.get(REF, soon())).state is ContainerState.STARTED
        release.set()
        assert set(await asyncio.gather(*waits)) == {ContainerState.STARTED}


async def test_the_retry_after_of_fly_is_kept() -> None:
    refusal = answer(429, {"error": "rate limit exceeded"}, **{"retry-after": "30"})
    async with client(Script(refusal)) as fly:
        with pytest.raises(ProviderRateLimited) as rejected:
            await fly.start(REF, "", Deadline.after(20))
    assert rejected.value.retry_after == 30.0


async def test_a_refresh_that_returns_another_lease_is_lease_lost() -> None:
    """Another caller could have changed the machine between the two leases."""
    script = Script(answer(201, {"data": {"nonce": "new", "expires_at": 1}}), answer(200))
    async with client(script) as fly:
        with pytest.raises(LeaseLost):
            await fly.refresh_lease(REF, "old", 30, soon())
    assert [request.method for request in script.requests] == ["POST", "DELETE"]
    assert script.requests[1].headers["fly-machine-lease-nonce"] == "new"


async def test_a_create_with_an_unusable_answer_is_outcome_unknown() -> None:
    from container_service.containers.model import ContainerSpec

    async with client(Script(answer(200, {"no": "id"}))) as fly:
        with pytest.raises(OutcomeUnknown):
            await fly.create("birds", "n", ContainerSpec("roost/base"), {}, soon())


async def test_the_token_is_in_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    script = Script(answer(401, {"error": "Authenticate: token validation error"}))
    async with client(script) as fly:
        with pytest.raises(Exception, match="FLY_API_TOKEN") as rejected:
            await fly.get(REF, soon())
    assert "secret-token" not in caplog.text
    assert "secret-token" not in repr(rejected.value)
