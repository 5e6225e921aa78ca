"""Creating on a volume that another container had: at Fly its claim can outlive it for minutes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.domain.session import ContainerState
from session_service.errors import ProviderRefused, ProviderUnavailable, RoostError, VolumeInUse
from session_service.lifecycle.evidence import LOOK_TIMEOUT
from session_service.ports import Address, ContainerAbsent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.lifecycle.ownership import Held
    from session_service.ports import Containers

#: Between tries to create on a volume that is not free yet, in s: doubled each time.
FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
_GOING = (ContainerState.DESTROYING, ContainerState.DESTROYED)


async def when_free(
    containers: Containers, held: Held, app: str, create: Callable[[], Awaitable[None]]
) -> None:
    """Do `create`, again while a container that is gone still claims the volume.

    Raises ProviderUnavailable where that takes longer than the transition may: the next start goes
    on from there; ProviderRefused where a container that lives has the volume; and what `create`
    raises.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            await create()
            return
        except VolumeInUse as error:
            claimant = error.metadata.get("container_id", "")
            if claimant and not await _gone(containers, Address(app, claimant)):
                raise ProviderRefused(
                    f"the volume to mount is that of container {claimant}, which is there; end "
                    "what uses it, or start on another volume",
                    error.metadata,
                ) from error
            if held.left < 2 * pause:
                raise ProviderUnavailable(
                    "the provider has not given the volume back that a container had which is "
                    "gone; try again",
                    error.metadata,
                    LAST_PAUSE,
                ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)


async def _gone(containers: Containers, claimant: Address) -> bool:
    """Whether the container that claims it goes away or is gone; where that cannot be told now, the
    next try tells.
    """
    try:
        seen = await containers.get(claimant, timeout=LOOK_TIMEOUT)
    except (ContainerAbsent, RoostError):
        return True
    return seen.state in _GOING
