"""The Machines API as a `Provider`: one HTTP call per method."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from container_service.containers.errors import (
    ContainerNotFound,
    LeaseLost,
    OutcomeUnknown,
    ProviderUnavailable,
    SuspendUnsupported,
)
from container_service.containers.model import (
    Container,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    ExecResult,
    Lease,
)
from container_service.fly import schema
from container_service.fly.app_health import AppHealthRegistry
from container_service.fly.call import Call
from container_service.fly.errors import NoLease, NotReached, RequestRejected, UnknownApp
from container_service.fly.json_list import JsonListReader
from container_service.fly.rate_limiter import RateLimiter
from container_service.fly.transport import Transport, connect
from container_service.fly.volumes import FlyVolumes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence

    import httpx

    from container_service.containers.deadlines import Deadline

#: Shortest and longest wait that Fly accepts, in seconds.
WAIT_SECONDS = (1, 60)
#: Seconds for the answer to a create, before which Fly may pull the image.
CREATE_SECONDS = 60.0
#: Seconds that the answer to a wait or an exec may take beyond the requested time.
ANSWER_SLACK_SECONDS = 15.0


class FlyClient:
    """Fly's Machines API as a `Provider`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def check(self, app: str, deadline: Deadline) -> None:
        """GET /apps/{app}. A 404 is a success too, because it shows that Fly accepted the token."""
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
        """GET /machines by metadata. The filter is applied again here, in case Fly ignores it."""

        async def use(pieces: AsyncIterator[bytes]) -> Sequence[Container]:
            listed = _containers(pieces, app, labels, include_destroyed=include_destroyed)
            return [container async for part in listed for container in part]

        call = _list_call(app, labels, include_destroyed=include_destroyed, streamed=False)
        return await self._transport.read(call, deadline, use)

    async def stream(
        self,
        app: str,
        labels: Mapping[str, str],
        deadline: Deadline,
        *,
        include_destroyed: bool = False,
    ) -> AsyncGenerator[Sequence[Container]]:
        """As `list`: one GET /machines, since Fly has no pages of the machines of an app."""
        call = _list_call(app, labels, include_destroyed=include_destroyed, streamed=True)
        async with aclosing(self._transport.stream(call, deadline)) as pieces:
            listed = _containers(pieces, app, labels, include_destroyed=include_destroyed)
            async for part in listed:
                yield part

    async def start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """POST /start."""
        await self._act("start", ref, nonce, deadline)

    async def suspend(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """POST /suspend.

        Fly does not document how it rejects a machine whose configuration does not allow suspend:
        any 400 or 422 counts as that.
        """
        try:
            await self._act("suspend", ref, nonce, deadline)
        except RequestRejected as error:
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
        """POST /cordon or /uncordon, both idempotent."""
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
        # Short enough for Fly to answer "not reached" before our deadline cuts the call off.
        timeout = min(longest, int(min(seconds, deadline.remaining() - 0.25)))
        timeout = max(shortest, timeout)
        call = Call(
            "wait",
            ref.container_id,
            "GET",
            _path(ref, "wait"),
            query={"state": ",".join(sorted(s.value for s in states)), "timeout": str(timeout)},
            long=True,
            seconds=timeout + ANSWER_SLACK_SECONDS,
        )
        try:
            answer = await self._transport.send(call, deadline)
        except NotReached:
            return None
        except RequestRejected:
            # Fly rejects a wait for a state that the machine is not changing to. The caller reads
            # the state next; the pause keeps the two from becoming a busy loop.
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
            # The lease had expired, and Fly granted a new one in its place. Another caller could
            # have changed the container between the two: the caller must not go on as if the lease
            # had been held all the time.
            with suppress(ProviderUnavailable):
                await self.release_lease(ref, lease.nonce, deadline)
            raise LeaseLost(
                "the lease had expired: acquire a new one, then read the container again"
            )
        return lease

    async def release_lease(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """DELETE /lease. Succeeds if the lease has expired or is held by another caller by now."""
        call = Call(
            "release",
            ref.container_id,
            "DELETE",
            _path(ref, "lease"),
            nonce=nonce,
            repeatable=True,
        )
        with suppress(LeaseLost, ContainerNotFound, RequestRejected):
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
            # A refresh is idempotent. A second acquire would be refused: we hold the lease already.
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
    health: AppHealthRegistry | None = None,
) -> AsyncGenerator[tuple[FlyClient, FlyVolumes]]:
    """Open both clients over one connection pool; `transport` replaces the network in tests."""
    health = AppHealthRegistry() if health is None else health
    limiter = RateLimiter(rate_share)
    async with connect(base_url, token, limiter, health, transport) as connected:
        yield FlyClient(connected), FlyVolumes(connected)


def _path(ref: ContainerRef, verb: str = "") -> str:
    machine = f"apps/{ref.app}/machines/{ref.container_id}"
    return f"{machine}/{verb}" if verb else machine


def _list_call(
    app: str, labels: Mapping[str, str], *, include_destroyed: bool, streamed: bool
) -> Call:
    query = {f"metadata.{key}": value for key, value in labels.items()}
    if include_destroyed:
        query["include_deleted"] = "true"
    path = f"apps/{app}/machines"
    return Call("list", app, "GET", path, query=query, repeatable=True, streamed=streamed)


async def _containers(
    pieces: AsyncIterator[bytes], app: str, labels: Mapping[str, str], *, include_destroyed: bool
) -> AsyncIterator[Sequence[Container]]:
    """The containers with these labels in a JSON list of machines that comes in pieces.

    Raises ProviderUnavailable if it is not a complete list.
    """
    reader = JsonListReader()
    async for piece in pieces:
        machines = [m for m in reader.feed(piece) if schema.may_have_labels(m, labels)]
        found = [schema.read_machine(app, machine) for machine in machines]
        if not include_destroyed:
            found = [c for c in found if c.state is not ContainerState.DESTROYED]
        if found:
            yield found
        # Pieces that are there already would follow each other without a wait.
        await asyncio.sleep(0)
    reader.close()
