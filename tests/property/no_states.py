"""A world in which no application hands out its state, and nothing mounts a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_service import errors
from session_service.vault import vault
from session_service.vault.saving import Habits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from session_service.ports import Address, Snapshot, Volume, Whole
    from session_service.storage.database import Database
    from session_service.vault.vault import Vault


class NoStates:
    """Refuses all. Any: a hook is JSON."""

    async def capture(
        self,
        address: Address,
        hook: Mapping[str, Any],
        take: Callable[[bytes], Awaitable[None]],
        *,
        timeout: float,
    ) -> Whole:
        """Never."""
        raise errors.StateHookFailed("there is no state here")

    async def restore(
        self,
        address: Address,
        hook: Mapping[str, Any],
        pieces: AsyncIterator[bytes],
        *,
        timeout: float,
    ) -> Whole:
        """Never."""
        raise errors.StateHookFailed("there is no state here")


class NoVolumes:
    """Refuses all."""

    async def snapshot(self, app: str, volume_id: str, *, timeout: float) -> Snapshot:
        """Never."""
        raise errors.ProviderRefused("there are no volumes here")

    async def snapshots(self, app: str, volume_id: str, *, timeout: float) -> list[Snapshot]:
        """Never."""
        raise errors.ProviderRefused("there are no volumes here")

    async def get(self, app: str, volume_id: str, *, timeout: float) -> Volume:
        """Never."""
        raise errors.ProviderRefused("there are no volumes here")

    async def create_from(
        self, app: str, name: str, like: Volume, snapshot_id: str, *, timeout: float
    ) -> Volume:
        """Never."""
        raise errors.ProviderRefused("there are no volumes here")

    async def listed(self, app: str, *, timeout: float) -> list[Volume]:
        """None."""
        return []

    async def delete(self, app: str, volume_id: str, *, timeout: float) -> None:
        """Never."""
        raise errors.ProviderRefused("there are no volumes here")


def no_vault(database: Database) -> Vault:
    """A vault that nothing can be saved to."""
    return vault.build(database, NoStates(), NoVolumes(), None, Habits())
