"""Protocols of the systems that session_service calls, and their values.

They are containers, volumes, the state of applications, previews, activity sources and the bucket.
`clients` has the implementations over the network; tests have others in memory.
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
    """Another holder has the container's lease, for longer than the caller could wait."""


class LeaseLost(Exception):
    """The nonce is not the one of the lease in force: another holder has fenced this one off."""


@dataclass(frozen=True, slots=True)
class Address:
    """A container's address: the provider's app and the container's id."""

    app: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A container as the provider reported it."""

    address: Address
    state: ContainerState
    region: str
    cordoned: bool
    last_start_time: datetime | None
    labels: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Booted:
    """A container that runs again after a resume.

    `memory_preserved`: whether its memory survived; None: unknown. `evidence`: how that was found
    out.
    """

    memory_preserved: bool | None
    boot_id: str | None
    evidence: str


class Containers(Protocol):
    """Containers at the provider.

    Every method is bounded by `timeout` (s). It raises ContainerAbsent or an error of `errors`.
    After ProviderUnavailable the action may have happened: the provider did not answer in time, or
    its answer was not clear. After ProviderCapacity, ProviderRateLimited and ProviderRefused it
    certainly did not happen.
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
        """Return the container of this name; create it if there is none, and never a second one.

        Raises errors.VolumeInUse if another container has the volume that it would mount.
        """

    async def get(self, address: Address, *, timeout: float) -> Seen:
        """Return the container as the provider reports it now."""

    async def list(self, app: str, labels: Mapping[str, str], *, timeout: float) -> list[Seen]:
        """Return all containers with these labels: the complete list, without destroyed ones. For a
        search by labels; an app's whole list is read by `stream`.
        """

    def stream(self, app: str, *, timeout: float) -> AsyncGenerator[Sequence[Seen], None]:
        """All containers of the app without destroyed ones, in parts of bounded size.

        It ends normally only after the complete list. A caller that leaves it earlier closes it.
        """

    async def wait_started(self, address: Address, *, timeout: float) -> None:
        """Wait until it runs. Raises errors.ProviderRefused if it certainly never will."""

    async def read_text(
        self, address: Address, command: Sequence[str], *, timeout: float
    ) -> str | None:
        """Run the command in the guest and return its output; None if that fails.

        Raises nothing.
        """

    async def read_boot_id(self, address: Address, *, timeout: float) -> str | None:
        """Return the guest's boot id; None if the guest does not answer. Raises nothing."""

    async def resume(
        self, address: Address, expected_boot_id: str | None, *, timeout: float
    ) -> Booted:
        """Start it from suspended or stopped, and prove whether its memory survived. Idempotent."""

    async def suspend(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        """Suspend it, and return it as it is then. Raises LeaseLost, errors.SuspendUnsupported."""

    async def stop(self, address: Address, nonce: str, *, timeout: float) -> Seen:
        """Stop it, and return it as it is then. Raises LeaseLost."""

    async def destroy(self, address: Address, nonce: str | None, *, timeout: float) -> None:
        """Destroy it, running or not; succeeds if it is gone already. Raises LeaseLost."""

    async def cordon(self, address: Address, nonce: str, *, timeout: float) -> None:
        """Take it out of routing. Raises LeaseLost."""

    async def uncordon(self, address: Address, *, timeout: float) -> None:
        """Put it back into routing. Raises LeaseHeld."""

    async def wait_paused(self, address: Address, *, timeout: float) -> ContainerState | None:
        """Wait until it is suspended or stopped; return which, or None if it is neither in time."""

    async def acquire_lease(
        self, address: Address, *, ttl: float, wait: float, timeout: float
    ) -> str:
        """Acquire a lease for `ttl` s and return its nonce.

        Waits up to `wait` s for another holder's lease to run out. Raises LeaseHeld.
        """

    async def release_lease(self, address: Address, nonce: str, *, timeout: float) -> None:
        """Release the lease; succeeds if it ran out. Raises nothing: a lease runs out by itself."""


class Activities(Protocol):
    """Whether a user uses a container, whose traffic does not pass through Roost."""

    async def active(self, container: Container, spec: str) -> bool:
        """Ask the spec's activity source; False if there is none, or if it does not answer.

        Raises nothing: an application that hangs must not keep its machine running for ever.
        """


class Previews(Protocol):
    """The previews of sessions: their addresses, and whether they answer."""

    def url(self, app: str, container_id: str) -> str:
        """Return the URL of the container's preview; "" if no pattern is configured."""

    async def answers(self, container: Container) -> bool:
        """Whether the preview answers now; False if it has no URL."""

    async def wait_ready(self, container: Container, timeout: float) -> bool:
        """Whether the preview answered within `timeout` s; True if it has no URL."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The size and the hash of a complete state."""

    size_bytes: int
    sha256: bytes


class States(Protocol):
    """The state of applications, through the state hook that a container's spec declares.

    The methods raise ContainerAbsent or an error of `errors`: ProviderUnavailable if the transfer
    broke off or was incomplete, or if the container does not run; StateHookFailed if the
    application rejected the call or failed; CheckpointTooLarge if the state is larger than
    container_service transfers.
    """

    async def capture(
        self,
        address: Address,
        hook: Mapping[str, Any],
        take: Callable[[bytes], Awaitable[None]],
        *,
        timeout: float,
    ) -> Whole:
        """Pass the state to `take` in pieces. Return only if the state is complete and its hash is
        that of the pieces that were passed. Only a few pieces are in memory at a time.
        """

    async def restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        *,
        timeout: float,
    ) -> Whole:
        """Send the state to the container, and return the size and hash that arrived there.

        If `pieces` raises, the call is broken off, so that the application accepts nothing, and the
        error of `pieces` is raised.
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
        """Begin a snapshot. If another one is in progress, that is an error that can be retried."""

    async def snapshots(self, app: str, volume_id: str, *, timeout: float) -> list[Snapshot]:
        """Return the volume's snapshots."""

    async def get(self, app: str, volume_id: str, *, timeout: float) -> Volume:
        """Return the volume."""

    async def create_from(
        self, app: str, name: str, like: Volume, snapshot_id: str, *, timeout: float
    ) -> Volume:
        """Return the volume of this name; create it from the snapshot if there is none."""

    async def listed(self, app: str, *, timeout: float) -> list[Volume]:
        """Return all volumes of the app, without deleted ones."""

    async def delete(self, app: str, volume_id: str, *, timeout: float) -> None:
        """Delete the volume; succeeds if it is gone already. Raises errors.VolumeInUse if a
        container has it, or had it a moment ago.
        """


class ObjectMissing(Exception):
    """The bucket has no such object."""


class Bucket(Protocol):
    """An S3-compatible bucket, which stores the bytes of large checkpoints.

    Every call has a time limit, and raises errors.StorageUnavailable if the bucket does not answer
    or rejects the request. No error contains a credential.
    """

    async def put(self, name: str, pieces: Sequence[bytes]) -> None:
        """Store an object, given in pieces, by one request; replaces one of the same name.

        If this raises or is cancelled, the whole object may exist, or none. A cancelled put can
        still arrive for as long as the store takes to process it.
        """

    def read(self, name: str) -> AsyncGenerator[bytes]:
        """Stream the object's bytes. Raises ObjectMissing."""

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names of the objects in a folder, which `prefix` names without its slash."""

    async def delete(self, name: str) -> None:
        """Delete the object; succeeds if it is gone already."""
