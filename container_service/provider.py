"""The port to whoever runs the containers, in the service's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence

    from container_service.container import (
        Container,
        ContainerRef,
        ContainerSpec,
        ContainerState,
        ExecResult,
        Lease,
    )
    from container_service.deadlines import Deadline
    from container_service.volume import Snapshot, Volume, VolumeRef, VolumeWish


class Provider(Protocol):
    """Runs containers. Every call ends by its deadline and raises nothing but ServiceError.

    A change whose answer was lost raises OutcomeUnknown and is not sent again, unless it can be
    repeated without effect. A change that was accepted may take its time: what came of it is
    learned by `wait` and `get`, and a `get` may lag behind.
    """

    async def check(self, app: str, deadline: Deadline) -> None:
        """Return when the provider answers and takes our credentials; raise otherwise."""

    async def create(
        self,
        app: str,
        name: str,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        deadline: Deadline,
    ) -> Container:
        """Create a container, `labels` on it as they are. NameTaken where the name is in use."""

    async def get(self, ref: ContainerRef, deadline: Deadline) -> Container:
        """Read a container. ContainerNotFound where the provider knows none."""

    async def list(
        self,
        app: str,
        labels: Mapping[str, str],
        deadline: Deadline,
        *,
        include_destroyed: bool = False,
    ) -> Sequence[Container]:
        """All of an application's containers that carry the labels; never a part of them.

        A container whose labels the provider cannot show at the moment is listed too: a listing
        without a container counts as evidence that it is gone.
        """

    async def start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """Have a container started or resumed. NotStartableYet where a moment later may do."""

    async def suspend(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """Have a container suspended."""

    async def stop(
        self, ref: ContainerRef, nonce: str, timeout_seconds: float | None, deadline: Deadline
    ) -> None:
        """Have a container stopped; its main process is killed when `timeout_seconds` are over."""

    async def destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> None:
        """Have a container destroyed, with `force` also while it runs."""

    async def set_cordoned(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, cordoned: bool
    ) -> None:
        """Take a container out of routing, or put it back."""

    async def wait(
        self,
        ref: ContainerRef,
        states: Collection[ContainerState],
        seconds: float,
        deadline: Deadline,
    ) -> ContainerState | None:
        """The state of those that the container is in within `seconds`, or None."""

    async def execute(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float, deadline: Deadline
    ) -> ExecResult:
        """Run a command in a container, to its end."""

    async def acquire_lease(
        self, ref: ContainerRef, ttl_seconds: int, description: str, deadline: Deadline
    ) -> Lease:
        """Take a container's lease. LeaseHeld where another has it."""

    async def read_lease(self, ref: ContainerRef, deadline: Deadline) -> Lease | None:
        """The lease that is held, its nonce too; None where nobody holds one."""

    async def refresh_lease(
        self, ref: ContainerRef, nonce: str, ttl_seconds: int, deadline: Deadline
    ) -> Lease:
        """Move the expiry of a lease that is held. LeaseLost where it is not."""

    async def release_lease(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        """Give a lease back; one that is not held any more is none of our business."""


class VolumeProvider(Protocol):
    """Keeps volumes and their snapshots, with the promises of `Provider`."""

    async def create_volume(self, wish: VolumeWish, deadline: Deadline) -> Volume:
        """Create a volume, empty or from a snapshot. Names are not unique: each call makes one."""

    async def get_volume(self, ref: VolumeRef, deadline: Deadline) -> Volume:
        """Read a volume. VolumeNotFound where there is none, or none any more."""

    async def list_volumes(self, app: str, deadline: Deadline) -> Sequence[Volume]:
        """All of an application's volumes."""

    async def delete_volume(self, ref: VolumeRef, deadline: Deadline) -> None:
        """Delete a volume. VolumeInUse where a container claims it."""

    async def take_snapshot(self, ref: VolumeRef, deadline: Deadline) -> Snapshot | None:
        """Have a snapshot taken; None where the provider does not tell which it will be."""

    async def list_snapshots(self, ref: VolumeRef, deadline: Deadline) -> Sequence[Snapshot]:
        """A volume's snapshots, newest first, also where the volume was deleted."""


class StateChannel(Protocol):
    """One way to the state of an application in a container that runs; `value` is the hook's.

    Ends by the deadline, raises nothing but ServiceError, and holds a bounded part of the state in
    memory. StateHookFailed where the application will not.
    """

    @property
    def limit(self) -> int:
        """The most bytes that it carries: a state that is known to be larger is refused at once."""

    def read(self, ref: ContainerRef, value: str, deadline: Deadline) -> AsyncGenerator[bytes]:
        """The state in pieces of at most CHUNK_BYTES.

        Ends only when the whole has come: ProviderUnavailable where it was cut off.
        """

    async def write(
        self, ref: ContainerRef, value: str, chunks: AsyncIterator[bytes], deadline: Deadline
    ) -> None:
        """Have the application take the state; returns when it said that it has the whole.

        An error of `chunks` is raised as it is, and the application is not told that all is there.
        """
