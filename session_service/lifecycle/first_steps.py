"""A start's first steps: reading what is known of its session, deciding, and committing that.

They take their turns by lane as well. Of five hundred starts at once each has some six statements
before it is in the queue for the provider, and without turns whoever comes in the middle of them
waits for all. A place is for statements alone: who waits for others gives it back.
"""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING

from session_service.errors import ProviderRateLimited, StorageUnavailable

if TYPE_CHECKING:
    from types import TracebackType

    from session_service.lifecycle.places import Places
    from session_service.lifecycle.queue import Path

#: So long (s) no start may have been served for those who wait to be told so: a database that hangs
#: is not to be met by all of them, one after the other.
PATIENCE = 3.0
#: About so many starts a second take their first steps.
RATE = 50.0


class FirstSteps:
    """A start's place at the database, before it has a transition: an async context manager.

    It gives its place back where it is to wait for others, and takes one anew after that.
    """

    def __init__(self, places: Places, path: Path) -> None:
        self._places = places
        self._path = path
        self._taken = False

    async def __aenter__(self) -> FirstSteps:
        """Wait for a place; see `go_on`."""
        await self.go_on()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the place to the next."""
        self.step_back(served=not isinstance(error, StorageUnavailable | CancelledError))

    async def go_on(self) -> None:
        """Take a place, unless one is held. Raises ProviderRateLimited where there is no room to
        wait, StorageUnavailable where nothing moves.
        """
        if self._taken:
            return
        self._places.check_room(self._path)
        try:
            await self._places.enter(self._path, PATIENCE)
        except ProviderRateLimited as error:
            raise StorageUnavailable("the database did not answer others; try again") from error
        self._taken = True

    def step_back(self, *, served: bool = True) -> None:
        """Give the place to the next: what comes now is to wait for others."""
        if self._taken:
            self._taken = False
            self._places.leave(self._path, served=served)
