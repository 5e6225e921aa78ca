"""Ports for tests in which no application has a state hook and nothing mounts a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_service import errors
from session_service.checkpoints import vault
from session_service.checkpoints.write import CheckpointSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from session_service.checkpoints.vault import Vault
    from session_service.ports import Address, Snapshot, Volume, Whole
    from session_service.storage.database import Database


class NoStates:
    """Rejects all calls. Any: a hook is JSON."""

    async def capture(
        self,
        address: Address,
        hook: Mapping[str, Any],
        take: Callable[[bytes], Awaitable[None]],
        *,
        timeout: float,
    ) -> Whole:
        """Always fails."""
        raise errors.StateHookFailed("there is no state here")

    async def restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        *,
        timeout: float,
    ) -> Whole:
        """Always fails."""
        raise errors.StateHookFailed("there is no state here")


class NoVolumes:
    """Rejects all calls."""

    async def snapshot(self, app: str, volume_id: str, *, timeout: float) -> Snapshot:
        """Always fails."""
        raise errors.ProviderRefused("there are no volumes here")

    async def snapshots(self, app: str, volume_id: str, *, timeout: float) -> list[Snapshot]:
        """Always fails."""
        raise errors.ProviderRefused("there are no volumes here")

    async def get(self, app: str, volume_id: str, *, timeout: float) -> Volume:
        """Always fails."""
        raise errors.ProviderRefused("there are no volumes here")

    async def create_from(
        self, app: str, name: str, like: Volume, snapshot_id: str, *, timeout: float
    ) -> Volume:
        """Always fails."""
        raise errors.ProviderRefused("there are no volumes here")

    async def listed(self, app: str, *, timeout: float) -> list[Volume]:
        """Always empty."""
        return []

    async def delete(self, app: str, volume_id: str, *, timeout: float) -> None:
        """Always fails."""
        raise errors.ProviderRefused("there are no volumes here")


def no_vault(database: Database) -> Vault:
    """A vault in which nothing can be saved."""
    return vault.build(database, NoStates(), NoVolumes(), None, CheckpointSettings())
