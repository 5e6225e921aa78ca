"""What the lifecycle needs of the world around it: containers, and their previews.

`clients` has both over the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )
    from datetime import datetime

    from session_service.domain.session import Container, ContainerState


class ContainerAbsent(Exception):
    """The provider does not know the container. One observation, not yet proof of loss."""


class LeaseHeld(Exception):
    """Somebody else holds the container's lease, for longer than could be waited."""


class LeaseLost(Exception):
    """The nonce shown is not that of the lease in force: its holder has been fenced off."""


@dataclass(frozen=True, slots=True)
class Address:
    """Which container: the provider's application and id."""

    app: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A container as the provider showed it."""

    address: Address
    state: ContainerState
    region: str
    cordoned: bool
    last_start_time: datetime | None
    labels: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Booted:
    """A container that runs again. `memory_preserved` None: could not be told."""

    memory_preserved: bool | None
    boot_id: str | None
    evidence: str


class Containers(Protocol):
    """What the lifecycle needs of containers.

    Every method is bounded by `timeout` (s) and raises ContainerAbsent, or of `errors`:
    ProviderUnavailable when it did not answer in time or not clearly (the action may have
    happened), ProviderCapacity, ProviderRateLimited, ProviderRefused when it certainly did not.
    """

    async def create(
        self,
        app: str,
        name: str,
        spec: Mapping[str, Any],
        labels: Mapping[str, str],
        *,
        timeout: float,
    ) -> Seen:
        """The container of this name, created if need be: never a second one. Raises
        errors.VolumeInUse where a container has the volume that it is to mount.
        """

    async def get(self, address: Address, *, timeout: float) -> Seen:
        """The container as it is."""

    async def list(self, app: str, labels: Mapping[str, str], *, timeout: float) -> list[Seen]:
        """All containers with these labels, complete, destroyed ones apart."""

    async def wait_started(self, address: Address, *, timeout: float) -> None:
        """Return once it runs. Raises errors.ProviderRefused where it certainly never will."""

    async def read_text(
        self, address: Address, command: Sequence[str], *, timeout: float
    ) -> str | None:
        """What the command writes in the guest; None where it fails or the guest does not answer.

        Raises nothing.
        """

    async def read_boot_id(self, address: Address, *, timeout: float) -> str | None:
        """The guest's boot id; None where it does not answer. Raises nothing else."""

    async def resume(
        self, address: Address, expected_boot_id: str | None, *, timeout: float
    ) -> Booted:
        """Bring it back from suspended or stopped, and prove what survived. Idempotent."""

    async def suspend(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        """Freeze it, and see what came of it. Raises LeaseLost, errors.SuspendUnsupported."""

    async def stop(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        """Stop it. Raises LeaseLost."""

    async def destroy(self, address: Address, nonce: str | None, *, timeout: float) -> None:
        """Destroy it, running or not; one that is gone is a success. Raises LeaseLost."""

    async def cordon(self, address: Address, nonce: str, *, timeout: float) -> None:
        """Take it out of routing. Raises LeaseLost."""

    async def uncordon(self, address: Address, *, timeout: float) -> None:
        """Put it back into routing. Raises LeaseHeld."""

    async def wait_resting(self, address: Address, *, timeout: float) -> ContainerState | None:
        """The state once it is suspended or stopped; None where it is neither in time."""

    async def acquire_lease(
        self, address: Address, *, ttl: float, wait: float, timeout: float
    ) -> str:
        """The nonce of a lease for `ttl` s, after up to `wait` s for another's to run out.

        Raises LeaseHeld.
        """

    async def release_lease(self, address: Address, nonce: str, *, timeout: float) -> None:
        """Give it back; one that ran out is a success. Raises nothing: it runs out by itself."""


class Activities(Protocol):
    """Whether somebody uses a container, where traffic does not come by Roost."""

    async def active(self, container: Container, spec: str) -> bool:
        """What the spec's activity source says; False without one, or where it does not answer.

        Raises nothing: an application that does not answer cannot keep its machine for ever.
        """


class Previews(Protocol):
    """Where sessions' previews answer, and whether they do."""

    def url(self, app: str, container_id: str) -> str:
        """Where the container's preview answers; "" where no pattern is configured."""

    async def answers(self, container: Container) -> bool:
        """Whether the preview answers now; False where it has no address."""

    async def wait_ready(self, container: Container, timeout: float) -> bool:
        """Whether the preview answered within `timeout` s; true where it has no address."""


@dataclass(frozen=True, slots=True)
class Whole:
    """What the bytes of a whole state were."""

    size_bytes: int
    sha256: bytes


class States(Protocol):
    """The state of applications, through the hook that a container's spec names.

    Raises ContainerAbsent, or of `errors`: ProviderUnavailable where it broke off, was not whole,
    or the container does not run; StateHookFailed where the application refused or failed;
    CheckpointTooLarge where it is more than container_service carries.
    """

    async def capture(
        self,
        address: Address,
        hook: Mapping[str, Any],
        take: Callable[[bytes], Awaitable[None]],
        *,
        timeout: float,
    ) -> Whole:
        """Give `take` the state in pieces; return only where the whole has come and its hash is
        that of what was taken. Never more than a few pieces are held.
        """

    async def restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        *,
        timeout: float,
    ) -> Whole:
        """Put the state into the container; what arrived there. Where `pieces` raises, the call is
        broken off, so that the application takes nothing, and that error is raised.
        """


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a volume at the provider."""

    snapshot_id: str
    ready: bool
    size_bytes: int
    lost: bool = False
    """Whether the provider could not take it, or has deleted it."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume at the provider."""

    volume_id: str
    name: str
    region: str
    size_gb: int
    ready: bool
    """Whether a container can mount it."""


class Volumes(Protocol):
    """Volumes and their snapshots, at the provider. Raises as `Containers` does."""

    async def snapshot(self, app: str, volume_id: str, *, timeout: float) -> Snapshot:
        """Begin a snapshot. One that is under way already is an error that can be retried."""

    async def snapshots(self, app: str, volume_id: str, *, timeout: float) -> list[Snapshot]:
        """The volume's snapshots."""

    async def get(self, app: str, volume_id: str, *, timeout: float) -> Volume:
        """The volume."""

    async def create_from(
        self, app: str, name: str, like: Volume, snapshot_id: str, *, timeout: float
    ) -> Volume:
        """The volume of this name, made of the snapshot if there is none yet."""

    async def listed(self, app: str, *, timeout: float) -> list[Volume]:
        """All volumes of the app, those that were deleted apart."""

    async def delete(self, app: str, volume_id: str, *, timeout: float) -> None:
        """Delete the volume; one that is gone is a success. Raises errors.VolumeInUse where a
        container has it, or had it a moment ago.
        """


class ObjectMissing(Exception):
    """The bucket has no such object."""


class Bucket(Protocol):
    """Where the bytes of large checkpoints are: an S3-compatible bucket.

    Every call is bounded, and raises errors.StorageUnavailable where the bucket does not answer or
    refuses.
    """

    async def begin(self, name: str) -> str:
        """Begin an upload of an object in parts; the upload's id. Nothing is there until it is
        completed.
        """

    async def put_part(self, name: str, upload: str, number: int, pieces: Sequence[bytes]) -> str:
        """Upload a part (from 1 on; 5 MiB at least but for the last), given in pieces; its tag."""

    async def complete(self, name: str, upload: str, tags: Sequence[str]) -> None:
        """Make the object of its parts."""

    async def abort(self, name: str, upload: str) -> None:
        """Forget an upload that was not completed; one that is gone is a success."""

    def read(self, name: str) -> AsyncGenerator[bytes]:
        """The object's bytes. Raises ObjectMissing."""

    async def delete(self, name: str) -> None:
        """Delete the object; one that is gone is a success."""
