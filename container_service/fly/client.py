"""The Machines API behind the provider's port: one method a verb, one HTTP call each."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from container_service.container import (
    Container,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    ExecResult,
    Lease,
)
from container_service.errors import (
    ContainerNotFound,
    LeaseLost,
    OutcomeUnknown,
    ProviderUnavailable,
    SuspendUnsupported,
)
from container_service.fly import schema
from container_service.fly.errors import Malformed, NoLease, NotReached, UnknownApp
from container_service.fly.pacing import Pacing
from container_service.fly.transport import Call, Transport, connect
from container_service.fly.volumes import FlyVolumes
from container_service.fly.weather import Weather

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

    import httpx

    from container_service.deadlines import Deadline

#: Fly refuses waits outside of these.
WAIT_SECONDS = (1, 60)
#: A create may pull an image first.
CREATE_SECONDS = 60.0
#: How much longer than asked for an answer to a wait or an exec may take.
ANSWER_SLACK_SECONDS = 15.0


class FlyClient:
    """Fly's Machines API as a `Provider`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def check(self, app: str, deadline: Deadline) -> None:
        """Any authenticated answer will do, also that there is no such app."""
        call = Call("app", app, "GET", f"apps/{app}", repeatable=False, seconds=5.0)
        with suppress(UnknownApp):
            await self._transport.send(call, deadline)

    async def create(
        self,
        app: str,
        name: str,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        deadline: Deadline,
    ) -> Container:
        """POST /machines."""
        call = Call(
            "create",
            app,
            "POST",
            f"apps/{app}/machines",
            body=schema.write_create(name, spec, labels),
            seconds=CREATE_SECONDS,
        )
        answer = await self._transport.send(call, deadline)
        try:
            return schema.read_machine(app, answer)
        except ProviderUnavailable as error:
            raise OutcomeUnknown(str(error)) from error

    async def get(self, ref: ContainerRef, deadline: Deadline) -> Container:
        """GET /machines/{id}."""
        call = Call("get", ref.container_id, "GET", _path(ref), repeatable=True)
        return schema.read_machine(ref.app, await self._transport.send(call, deadline))

    async def list(
        self,
        app: str,
        labels: Mapping[str, str],
        deadline: Deadline,
        *,
        include_destroyed: bool = False,
    ) -> Sequence[Container]:
        """GET /machines by metadata, the filter applied once more in case Fly ignores it."""
        query = {f"metadata.{key}": value for key, value in labels.items()}
        if include_destroyed:
            query["include_deleted"] = "true"
        call = Call("list", app, "GET", f"apps/{app}/machines", query=query, repeatable=True)
        machines = schema.read_machines(await self._transport.send(call, deadline))
        found = [schema.read_machine(app, m) for m in machines if schema.carries(m, labels)]
        if include_destroyed:
            return found
        return [c for c in found if c.state is not ContainerState.DESTROYED]

    async def start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """POST /start."""
        await self._act("start", ref, nonce, deadline)

    async def suspend(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """POST /suspend. How Fly refuses a machine's shape is not documented: any way counts."""
        try:
            await self._act("suspend", ref, nonce, deadline)
        except Malformed as error:
            raise SuspendUnsupported(
                str(error), provider_request_id=error.provider_request_id
            ) from error

    async def stop(
        self, ref: ContainerRef, nonce: str, timeout_seconds: float | None, deadline: Deadline
    ) -> None:
        """POST /stop."""
        body = None
        if timeout_seconds is not None:
            body = {"timeout": schema.write_duration(timeout_seconds)}
        await self._act("stop", ref, nonce, deadline, body=body)

    async def destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> None:
        """DELETE /machines/{id}."""
        query = {"force": "true"} if force else {}
        call = Call("destroy", ref.container_id, "DELETE", _path(ref), query=query, nonce=nonce)
        await self._transport.send(call, deadline)

    async def set_cordoned(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, cordoned: bool
    ) -> None:
        """POST /cordon or /uncordon: either twice is as good as once."""
        action = "cordon" if cordoned else "uncordon"
        await self._act(action, ref, nonce, deadline, repeatable=True)

    async def wait(
        self,
        ref: ContainerRef,
        states: Collection[ContainerState],
        seconds: float,
        deadline: Deadline,
    ) -> ContainerState | None:
        """GET /wait."""
        shortest, longest = WAIT_SECONDS
        # Fly's "not reached" should come back before our deadline cuts the call off.
        patience = min(longest, int(min(seconds, deadline.remaining() - 0.25)))
        patience = max(shortest, patience)
        call = Call(
            "wait",
            ref.container_id,
            "GET",
            _path(ref, "wait"),
            query={"state": ",".join(sorted(s.value for s in states)), "timeout": str(patience)},
            long=True,
            seconds=patience + ANSWER_SLACK_SECONDS,
        )
        try:
            answer = await self._transport.send(call, deadline)
        except NotReached:
            return None
        except Malformed:
            # Seen where the machine is not heading for the state: a GET tells, a moment later.
            await asyncio.sleep(min(1.0, deadline.remaining()))
            return None
        return schema.read_wait(answer, states)

    async def execute(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float, deadline: Deadline
    ) -> ExecResult:
        """POST /exec."""
        call = Call(
            "exec",
            ref.container_id,
            "POST",
            _path(ref, "exec"),
            body={"command": list(command), "timeout": max(1, round(timeout_seconds))},
            long=True,
            seconds=timeout_seconds + ANSWER_SLACK_SECONDS,
        )
        return schema.read_exec(await self._transport.send(call, deadline))

    async def acquire_lease(
        self, ref: ContainerRef, ttl_seconds: int, description: str, deadline: Deadline
    ) -> Lease:
        """POST /lease."""
        return await self._lease(ref, ttl_seconds, "", deadline, description=description)

    async def refresh_lease(
        self, ref: ContainerRef, nonce: str, ttl_seconds: int, deadline: Deadline
    ) -> Lease:
        """POST /lease with the nonce."""
        lease = await self._lease(ref, ttl_seconds, nonce, deadline)
        if lease.nonce != nonce:
            # Fly gave us a new lease in place of one that had run out: between the two anybody
            # could have changed the container, so the fence is gone.
            with suppress(ProviderUnavailable):
                await self.release_lease(ref, lease.nonce, deadline)
            raise LeaseLost("the lease had run out")
        return lease

    async def release_lease(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """DELETE /lease; a lease that is gone, or another's by now, needs no release."""
        call = Call(
            "release",
            ref.container_id,
            "DELETE",
            _path(ref, "lease"),
            nonce=nonce,
            repeatable=True,
        )
        with suppress(LeaseLost, ContainerNotFound, Malformed):
            await self._transport.send(call, deadline)

    async def read_lease(self, ref: ContainerRef, deadline: Deadline) -> Lease | None:
        """GET /lease."""
        call = Call("lease_get", ref.container_id, "GET", _path(ref, "lease"), repeatable=True)
        try:
            return schema.read_lease(await self._transport.send(call, deadline))
        except NoLease:
            return None

    async def _lease(
        self, ref: ContainerRef, ttl: int, nonce: str, deadline: Deadline, **body: str
    ) -> Lease:
        call = Call(
            "lease",
            ref.container_id,
            "POST",
            _path(ref, "lease"),
            body={"ttl": ttl, **body},
            nonce=nonce,
            # With its nonce a lease is only made longer; without, a second one would be refused.
            repeatable=bool(nonce),
        )
        return schema.read_lease(await self._transport.send(call, deadline))

    async def _act(
        self,
        action: str,
        ref: ContainerRef,
        nonce: str,
        deadline: Deadline,
        *,
        body: Mapping[str, Any] | None = None,
        repeatable: bool = False,
    ) -> None:
        call = Call(
            action,
            ref.container_id,
            "POST",
            _path(ref, action),
            body=body,
            nonce=nonce,
            repeatable=repeatable,
        )
        await self._transport.send(call, deadline)


@asynccontextmanager
async def open_client(
    base_url: str,
    token: str,
    rate_share: float = 1.0,
    transport: httpx.AsyncBaseTransport | None = None,
    weather: Weather | None = None,
) -> AsyncGenerator[tuple[FlyClient, FlyVolumes]]:
    """Clients for the life of the process; `transport` stands in for the network in tests."""
    weather = Weather() if weather is None else weather
    async with connect(base_url, token, Pacing(rate_share), weather, transport) as sending:
        yield FlyClient(sending), FlyVolumes(sending)


def _path(ref: ContainerRef, verb: str = "") -> str:
    machine = f"apps/{ref.app}/machines/{ref.container_id}"
    return f"{machine}/{verb}" if verb else machine
