"""A replica over a real database and containers in memory, which can die at any of its steps."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from session_service import errors
from session_service.config import Config
from session_service.server import composition
from session_service.storage.database import Database
from session_service.storage.installation import Installation
from session_service.storage.notifications import Notices
from tests.property.memory_containers import MemoryContainers, MemoryPreviews, NoActivity
from tests.property.no_states import no_vault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from session_service.server.composition import Wired
    from session_service.storage.database import BoundedConnection
    from tests.property.memory_containers import Cloud

INSTALLATION = Installation(UUID(int=7), original=True)


class MortalDatabase(Database):
    """A connection pool that fails once its process died."""

    passing: Callable[[str, str], None]

    @asynccontextmanager
    async def connection(
        self, answer: float | None = None
    ) -> AsyncGenerator[BoundedConnection, None]:
        self.passing("database", "before")
        async with super().connection(answer) as connection:
            yield connection
        self.passing("database", "after")


class Replica:
    """One process: its wiring, and the step at which it dies.

    `countdown` is the number of steps left (None: no limit). Each provider call and each commit
    counts two steps, before and after. A dead process does nothing: all its later calls fail.
    """

    def __init__(self, database: MortalDatabase, cloud: Cloud, config: Config) -> None:
        self._database = database
        self._cloud = cloud
        self._config = config
        self.countdown: int | None = None
        self.dead = False
        self.faults: list[tuple[str, str]] = []
        """The next calls of these names fail, before or after they are done."""
        self.begin()

    def begin(self) -> None:
        """Start a new process in place of the old one."""
        self.dead, self.countdown = False, None
        self._database.passing = self._pass
        outside = composition.Outside(
            self._database,
            Notices("postgresql://unused"),
            MemoryContainers(self._cloud, self._pass),
            MemoryPreviews(self._cloud),
            NoActivity(),
            INSTALLATION,
            no_vault(self._database),
        )
        self._ownership = composition.own(self._config, self._database)
        self.wired: Wired = composition.build(self._config, outside, self._ownership)

    def _pass(self, name: str, moment: str) -> None:
        if self.countdown is not None:
            self.countdown -= 1
            self.dead = self.dead or self.countdown < 0
        if self.dead:
            if name == "database":
                raise errors.StorageUnavailable("this process is dead")
            raise errors.ProviderUnavailable("this process is dead")
        if (name, moment) in self.faults:
            self.faults.remove((name, moment))
            raise errors.ProviderUnavailable(f"{name} failed {moment} it was done; try again")

    async def bury(self) -> None:
        """Wait until its last tasks ended, and start a new process."""
        self.dead = True
        await self._ownership.drain(0.0)
        await self.wired.background.due_pass.close()
        self.faults.clear()
        self.begin()

    async def settle(self) -> None:
        """Wait for the transitions that calls left behind."""
        for _ in range(100):
            tasks = set(self._ownership._tasks)  # no public method shows the tasks
            if not tasks:
                return
            await asyncio.wait(tasks, timeout=5)


def config(url: str) -> Config:
    """Nothing counts as fresh, and sessions pass through all states in minutes of moved time."""
    return Config(
        database_url=url,
        default_image="roost/counter",
        app="memory",
        lag_window=timedelta(0),
        freshness_window=timedelta(0),
        lease=timedelta(seconds=1),
        start_budget=timedelta(seconds=20),
        idle_timeout=timedelta(minutes=30),
        deepen_after=timedelta(hours=4),
        expire_after=timedelta(hours=24),
        grace_period=timedelta(minutes=10),
        abandoned_after=timedelta(minutes=2),
        sweep_min_age=timedelta(minutes=10),
        sweep_passes=2,
        pool_size=4,
    )
