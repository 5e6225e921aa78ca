"""The port to the provider: what the use cases need from the platform that runs the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence

    from container_service.containers.deadlines import Deadline
    from container_service.containers.model import (
        Container,
        ContainerRef,
        ContainerSpec,
        ContainerState,
        ExecResult,
        Lease,
        Snapshot,
        Volume,
        VolumeCreateRequest,
        VolumeRef,
    )


class Provider(Protocol):
    """Runs containers. Every call ends by its deadline and raises subclasses of ServiceError only.

    A change whose answer was lost raises OutcomeUnknown. An implementation repeats such a change
    only if the change is idempotent. A return means that the provider accepted the change, not that
    it is complete: observe the result with `wait` and `get`. A `get` may lag behind a change.

    `nonce` is the lease nonce of the caller; empty means that the caller holds no lease.
    """

    async def check(self, app: str, deadline: Deadline) -> None:
        """Return if the provider answers and accepts the service's credentials; raise otherwise."""

    async def create(
        self,
        app: str,
        name: str,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        deadline: Deadline,
    ) -> Container:
        """Create a container with exactly these labels. Raises NameTaken if the name is in use."""

    async def get(self, ref: ContainerRef, deadline: Deadline) -> Container:
        """Read a container. Raises ContainerNotFound."""

    async def list(
        self,
        app: str,
        labels: Mapping[str, str],
        deadline: Deadline,
        *,
        include_destroyed: bool = False,
    ) -> Sequence[Container]:
        """All containers of the app that have all the labels: the complete list, or an error.

        The list includes a container whose labels the provider cannot read now, because callers
        take the absence of a container from the list as evidence of its loss.
        """

    def stream(
        self,
        app: str,
        labels: Mapping[str, str],
        deadline: Deadline,
        *,
        include_destroyed: bool = False,
    ) -> AsyncGenerator[Sequence[Container]]:
        """The containers of `list` in parts of bounded size. Ends normally only after the complete
        list. Close it, if it is left before its end.
        """

    async def start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """Request a start or a resume. Raises NotStartableYet if a retry may succeed."""

    async def suspend(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """Request a suspend."""

    async def stop(
        self, ref: ContainerRef, nonce: str, timeout_seconds: float | None, deadline: Deadline
    ) -> None:
        """Request a stop. The provider kills the main process after `timeout_seconds`."""

    async def destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> None:
        """Request the destruction of a container; `force` allows it while the container runs."""

    async def set_cordoned(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, cordoned: bool
    ) -> None:
        """Exclude a container from routing, or include it again."""

    async def wait(
        self,
        ref: ContainerRef,
        states: Collection[ContainerState],
        seconds: float,
        deadline: Deadline,
    ) -> ContainerState | None:
        """The first of `states` that the container reaches within `seconds`, or None."""

    async def execute(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float, deadline: Deadline
    ) -> ExecResult:
        """Run a command in a container and wait for its end."""

    async def acquire_lease(
        self, ref: ContainerRef, ttl_seconds: int, description: str, deadline: Deadline
    ) -> Lease:
        """Acquire the lease of a container. Raises LeaseHeld if another caller holds it."""

    async def read_lease(self, ref: ContainerRef, deadline: Deadline) -> Lease | None:
        """The current lease, nonce included; None if no lease is held."""

    async def refresh_lease(
        self, ref: ContainerRef, nonce: str, ttl_seconds: int, deadline: Deadline
    ) -> Lease:
        """Extend a lease that is still held. Raises LeaseLost if it is not."""

    async def release_lease(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """Release a lease. Succeeds if the nonce no longer holds it."""


class VolumeProvider(Protocol):
    """Stores volumes and their snapshots, with the promises of `Provider`."""

    async def create_volume(self, request: VolumeCreateRequest, deadline: Deadline) -> Volume:
        """Create a volume, empty or from a snapshot. Not idempotent: names are not unique."""

    async def get_volume(self, ref: VolumeRef, deadline: Deadline) -> Volume:
        """Read a volume. Raises VolumeNotFound, also for a deleted volume."""

    async def list_volumes(self, app: str, deadline: Deadline) -> Sequence[Volume]:
        """All volumes of the app."""

    async def delete_volume(self, ref: VolumeRef, deadline: Deadline) -> None:
        """Delete a volume. Raises VolumeInUse if a container has claimed it."""

    async def take_snapshot(self, ref: VolumeRef, deadline: Deadline) -> Snapshot | None:
        """Begin a snapshot and return it; None if the provider does not identify it."""

    async def list_snapshots(self, ref: VolumeRef, deadline: Deadline) -> Sequence[Snapshot]:
        """The snapshots of a volume, newest first. Works for a deleted volume too."""


class StateChannel(Protocol):
    """Reads and writes the state of an application through one kind of state hook.

    The container must run. `value` is the hook's HTTP path or command. Calls end by the deadline,
    raise subclasses of ServiceError only (StateHookFailed if the application fails), and hold a
    bounded part of the state in memory.
    """

    @property
    def limit(self) -> int:
        """The largest size of a state, in bytes. A state known to be larger fails at once."""

    def read(self, ref: ContainerRef, value: str, deadline: Deadline) -> AsyncGenerator[bytes]:
        """Yield the state in pieces of at most CHUNK_BYTES.

        Ends normally only after the whole state; raises ProviderUnavailable if it was cut off.
        """

    async def write(
        self, ref: ContainerRef, value: str, chunks: AsyncIterator[bytes], deadline: Deadline
    ) -> None:
        """Write the state; return when the application has confirmed the whole of it.

        An error raised by `chunks` propagates unchanged, and the application never sees a complete
        body in that case.
        """
