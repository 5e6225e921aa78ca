"""The stack under test: real processes, with a bad network at hand between any two of them."""

from __future__ import annotations

import random
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

from local.netfault import NetFault
from local.ports import HOST, free_port
from local.stack import Stack
from local.stack_settings import StackSettings
from session_service import points

if TYPE_CHECKING:
    from pathlib import Path

    from local.stack_parts import Part

REPLICAS = ("session_service", "session_service_2")
CONTAINERS = "container_service"
APP = "roost-local"
#: Quick enough that a run of half a minute sees everything many times.
ENVIRONMENT = {
    "ROOST_LEASE": "1",
    "ROOST_LAG_WINDOW": "0.4",
    "ROOST_START_BUDGET": "6",
    "ROOST_GRACE_PERIOD": "5",
    "ROOST_KEEPER_INTERVAL": "0.3",
    "ROOST_SWEEP_INTERVAL": "1",
    "ROOST_SWEEP": "act",
    "ROOST_SWEEP_MIN_AGE": "3",
    "ROOST_SWEEP_PASSES": "2",
    "ROOST_ABANDONED_AFTER": "4",
    "ROOST_GRACE": "2",
    # Root writes nothing that a click could be lost in: the counter is in memory alone.
    "ROOST_DEFAULT_IMAGE": "roost/counter",
}


class Rig:
    """Two replicas, one container_service, the emulator and PostgreSQL, as long as this context."""

    def __init__(self, data: Path, seed: int) -> None:
        dice = random.Random(f"{seed}:settings")
        environment = {
            **ENVIRONMENT,
            "ROOST_FRESHNESS_WINDOW": dice.choice(["0", "0.5", "2"]),
            "ROOST_IDLE_TIMEOUT": dice.choice(["3", "1800"]),
            "ROOST_DEEPEN_AFTER": dice.choice(["4", "86400"]),
        }
        self.clicks_wake = dice.choice(["true", "false"])
        free = StackSettings.on_free_ports(data, replicas=len(REPLICAS))
        self.settings = replace(
            free,
            fresh=True,
            # A crash of PostgreSQL must lose nothing that was acknowledged.
            durable=True,
            postgres_port=free_port(),
            app=APP,
            # Whether a click on a preview at rest wakes its machine, or is refused.
            emulator_options=("--no-limits", f"--set=autostart_default={self.clicks_wake}"),
            environment=environment,
        ).with_ports()
        self.stack = Stack(self.settings, self._rewired)
        self.relays: dict[str, NetFault] = {}
        self._open = AsyncExitStack()

    @property
    def targets(self) -> list[str]:
        """Where callers find the replicas: no bad network is between them and us."""
        return self.stack.session_targets

    @property
    def database_url(self) -> str:
        """PostgreSQL's own address, for the checks."""
        return self.stack.database_url

    async def restart(self, name: str, kill_at: str = "") -> None:
        """Start a part that was killed, with a kill point armed where one is named."""
        part = self.stack.parts[name]
        environment = {k: v for k, v in part.environment.items() if k != points.VARIABLE}
        if kill_at:
            environment[points.VARIABLE] = kill_at
        self.stack.parts[name] = replace(part, environment=environment)
        await self.stack.start(name)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            ports = {"fly": self.settings.fly_port}
            for name in REPLICAS:
                ports[f"{name}-database"] = self.settings.postgres_port
                ports[f"{name}-containers"] = self.settings.container_port
            for name, port in ports.items():
                self.relays[name] = await opened.enter_async_context(NetFault(port))
            await opened.enter_async_context(self.stack)
            self._open = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def _rewired(self, part: Part) -> Part:
        """The part, made to reach its neighbours through our relays."""
        more: dict[str, str] = {}
        if part.name == CONTAINERS:
            more["FLY_FLAPS_BASE_URL"] = f"http://{HOST}:{self.relays['fly'].port}"
            part = replace(part, command=(sys.executable, "-m", "tests.chaos.unpaced"))
        elif part.name in REPLICAS:
            url = urlsplit(part.environment["ROOST_DATABASE_URL"])
            where = url.netloc.rpartition(":")[0]
            netloc = f"{where}:{self.relays[f'{part.name}-database'].port}"
            more["ROOST_DATABASE_URL"] = urlunsplit(url._replace(netloc=netloc))
            port = self.relays[f"{part.name}-containers"].port
            more["ROOST_CONTAINER_TARGET"] = f"{HOST}:{port}"
        return replace(part, environment={**part.environment, **more})
