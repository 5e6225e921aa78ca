"""Containers in memory: the port's semantics, with a clock that tests move, and injected faults.

It passes the same contract suite as container_service over the emulator (`test_containers_port`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from session_service import errors
from session_service.domain.session import Container, ContainerState
from session_service.ports import (
    Address,
    Booted,
    ContainerAbsent,
    LeaseHeld,
    LeaseLost,
    Seen,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

#: Containers in a part of a stream.
PART = 100
PAUSED_STATES = (ContainerState.SUSPENDED, ContainerState.STOPPED)


@dataclass(slots=True)
class Machine:
    """A machine and its user's counter."""

    address: Address
    name: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str]
    create_time: datetime
    state: ContainerState = ContainerState.STARTED
    boot: int = 1
    start_time: datetime | None = None
    cordoned: bool = False
    nonce: str = ""
    lease_until: datetime | None = None
    memory: int = 0
    """Clicks since the last cold boot: the memory that MEMORY promises to keep."""
    snapshot: bool = False
    """Whether there is memory to resume from."""

    @property
    def boot_id(self) -> str:
        """The boot id as the guest reports it."""
        return f"{self.address.container_id}-boot-{self.boot}"


@dataclass(slots=True)
class Cloud:
    """All machines, shared by the replicas."""

    machines: dict[str, Machine] = field(default_factory=dict)
    shift: timedelta = timedelta(0)
    """How far the tests' clock is ahead of the wall's."""
    numbers: count[int] = field(default_factory=lambda: count(1))
    destroyed: list[Machine] = field(default_factory=list)
    """Destroyed by a call, in order. Machines that a test destroyed directly are not included."""

    @property
    def now(self) -> datetime:
        """The cloud's time."""
        return datetime.now(UTC) + self.shift

    def pass_time(self, span: timedelta) -> None:
        """Move all times of the machines back, as `_tick` moves those of the rows."""
        for machine in self.machines.values():
            machine.create_time -= span
            if machine.start_time is not None:
                machine.start_time -= span
            if machine.lease_until is not None:
                machine.lease_until -= span

    def boot(self, machine: Machine) -> None:
        """A cold boot: memory is empty."""
        machine.state, machine.snapshot, machine.memory = ContainerState.STARTED, False, 0
        machine.boot += 1
        machine.start_time = self.now


class MemoryContainers:
    """`ports.Containers` over a cloud, for one replica.

    `passing` is called with each call's name and "before" or "after". If it raises, the caller gets
    that error, and the call was not executed ("before") or was ("after").
    """

    def __init__(
        self, cloud: Cloud, passing: Callable[[str, str], None] = lambda name, moment: None
    ) -> None:
        self._cloud = cloud
        self._passing = passing

    async def _enter(self, name: str) -> None:
        await asyncio.sleep(0)
        self._passing(name, "before")

    async def _leave(self, name: str) -> None:
        self._passing(name, "after")
        await asyncio.sleep(0)

    def _machine(self, address: Address) -> Machine:
        machine = self._cloud.machines.get(address.container_id)
        if machine is None:
            raise ContainerAbsent(f"no container {address.container_id}")
        return machine

    def _fence(self, machine: Machine, nonce: str | None) -> None:
        """A call with a nonce must hold the lease; one without a nonce fails during a lease."""
        held = machine.lease_until is not None and machine.lease_until > self._cloud.now
        if nonce and not (held and machine.nonce == nonce):
            raise LeaseLost("the nonce is not that of the lease in force")
        if not nonce and held:
            # The lease ends now, so that a caller that waits for it need not wait in real time.
            machine.lease_until = self._cloud.now
            raise LeaseHeld("the machine is leased")

    async def create(
        self,
        app: str,
        name: str,
        spec: Mapping[str, Any],
        labels: Mapping[str, str],
        *,
        timeout: float,
    ) -> Seen:
        await self._enter("create")
        found = [
            m
            for m in self._cloud.machines.values()
            if m.name == name and m.state is not ContainerState.DESTROYED
        ]
        if found and dict(found[0].spec) != dict(spec):
            raise errors.ProviderRefused("the name is taken by a container of another spec")
        machine = found[0] if found else self._make(app, name, spec, labels)
        await self._leave("create")
        return _seen(machine)

    def _make(
        self, app: str, name: str, spec: Mapping[str, Any], labels: Mapping[str, str]
    ) -> Machine:
        now = self._cloud.now
        where = Address(app or "memory", f"m{next(self._cloud.numbers)}")
        machine = Machine(where, name, dict(spec), dict(labels), now, start_time=now)
        self._cloud.machines[where.container_id] = machine
        return machine

    async def get(self, address: Address, *, timeout: float) -> Seen:
        await self._enter("get")
        seen = _seen(self._machine(address))
        await self._leave("get")
        return seen

    def _present(self, app: str, labels: Mapping[str, str]) -> list[Seen]:
        return [
            _seen(m)
            for m in self._cloud.machines.values()
            if m.address.app == (app or "memory")
            and m.state is not ContainerState.DESTROYED
            and labels.items() <= m.labels.items()
        ]

    async def list(self, app: str, labels: Mapping[str, str], *, timeout: float) -> list[Seen]:
        await self._enter("list")
        found = self._present(app, labels)
        await self._leave("list")
        return found

    async def stream(self, app: str, *, timeout: float) -> AsyncGenerator[Sequence[Seen], None]:
        await self._enter("stream")
        found = self._present(app, {})
        for begin in range(0, len(found), PART):
            yield found[begin : begin + PART]
        await self._leave("stream")

    async def wait_started(self, address: Address, *, timeout: float) -> None:
        await self._enter("wait_started")
        if self._machine(address).state is not ContainerState.STARTED:
            raise errors.ProviderUnavailable("it did not start in time; try again")
        await self._leave("wait_started")

    async def wait_paused(self, address: Address, *, timeout: float) -> ContainerState | None:
        await self._enter("wait_paused")
        state = self._machine(address).state
        await self._leave("wait_paused")
        return state if state in PAUSED_STATES else None

    async def read_text(
        self, address: Address, command: Sequence[str], *, timeout: float
    ) -> str | None:
        boot_id = await self.read_boot_id(address, timeout=timeout)
        return boot_id if "boot_id" in command[-1] else None

    async def read_boot_id(self, address: Address, *, timeout: float) -> str | None:
        try:
            await self._enter("read_boot_id")
            machine = self._machine(address)
        except (errors.RoostError, ContainerAbsent):
            return None
        return machine.boot_id if machine.state is ContainerState.STARTED else None

    async def resume(
        self, address: Address, expected_boot_id: str | None, *, timeout: float
    ) -> Booted:
        await self._enter("resume")
        machine = self._machine(address)
        if machine.state is ContainerState.DESTROYED:
            raise errors.ProviderRefused("the container is destroyed")
        self._fence(machine, None)
        if machine.state is ContainerState.SUSPENDED and machine.snapshot:
            machine.state, machine.start_time = ContainerState.STARTED, self._cloud.now
        elif machine.state is not ContainerState.STARTED:
            self._cloud.boot(machine)
        await self._leave("resume")
        preserved = None if expected_boot_id is None else machine.boot_id == expected_boot_id
        return Booted(preserved, machine.boot_id, "memory")

    async def suspend(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        await self._enter("suspend")
        machine = self._machine(address)
        self._fence(machine, nonce)
        if machine.state is ContainerState.STARTED:
            machine.state, machine.snapshot = ContainerState.SUSPENDED, True
        await self._leave("suspend")
        return _seen(machine)

    async def stop(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        await self._enter("stop")
        machine = self._machine(address)
        self._fence(machine, nonce)
        if machine.state in (ContainerState.STARTED, ContainerState.SUSPENDED):
            machine.state, machine.snapshot = ContainerState.STOPPED, False
        await self._leave("stop")
        return _seen(machine)

    async def destroy(self, address: Address, nonce: str | None, *, timeout: float) -> None:
        await self._enter("destroy")
        machine = self._cloud.machines.get(address.container_id)
        if machine is not None and machine.state is not ContainerState.DESTROYED:
            if nonce:
                self._fence(machine, nonce)
            machine.state = ContainerState.DESTROYED
            self._cloud.destroyed.append(machine)
        await self._leave("destroy")

    async def cordon(self, address: Address, nonce: str, *, timeout: float) -> None:
        await self._enter("cordon")
        machine = self._machine(address)
        self._fence(machine, nonce)
        machine.cordoned = True
        await self._leave("cordon")

    async def uncordon(self, address: Address, *, timeout: float) -> None:
        await self._enter("uncordon")
        machine = self._machine(address)
        self._fence(machine, None)
        machine.cordoned = False
        await self._leave("uncordon")

    async def acquire_lease(
        self, address: Address, *, ttl: float, wait: float, timeout: float
    ) -> str:
        await self._enter("acquire_lease")
        machine = self._machine(address)
        now = self._cloud.now
        # A wait that is long enough ends at once: tests do not wait in real time.
        if machine.lease_until is not None and machine.lease_until > now + timedelta(seconds=wait):
            raise LeaseHeld("the machine is leased for longer than the wait")
        machine.nonce = f"nonce-{next(self._cloud.numbers)}"
        machine.lease_until = now + timedelta(seconds=ttl)
        await self._leave("acquire_lease")
        return machine.nonce

    async def release_lease(self, address: Address, nonce: str, *, timeout: float) -> None:
        try:
            await self._enter("release_lease")
            machine = self._machine(address)
        except (errors.RoostError, ContainerAbsent):
            return
        if machine.nonce == nonce:
            machine.lease_until = None


def _seen(machine: Machine) -> Seen:
    return Seen(
        machine.address,
        machine.state,
        "iad",
        machine.cordoned,
        machine.start_time,
        machine.labels,
        machine.create_time,
    )


class MemoryPreviews:
    """Previews of machines in memory: those that run answer."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def url(self, app: str, container_id: str) -> str:
        """An address that is never requested."""
        return f"http://{container_id}.{app}.invalid/"

    async def answers(self, container: Container) -> bool:
        """Whether the machine runs."""
        machine = self._cloud.machines.get(container.container_id or "")
        return machine is not None and machine.state is ContainerState.STARTED

    async def wait_ready(self, container: Container, timeout: float) -> bool:
        """The same: a running machine serves."""
        return await self.answers(container)


class NoActivity:
    """No application reports activity."""

    async def active(self, container: Container, spec: str) -> bool:
        """Always False."""
        return False
