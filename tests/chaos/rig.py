"""The test rig: a stack of real processes with a network relay between any two of them."""

from __future__ import annotations

import random
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

from local.netfault import NetFault
from local.ports import HOST, free_port
from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from session_service import failpoints

if TYPE_CHECKING:
    from pathlib import Path

    from local.stack.programs import Program

REPLICAS = ("session_service", "session_service_2")
CONTAINERS = "container_service"
APP = "roost-local"
UNLIMITED = "tests.chaos.unlimited_container_service"
#: Short times, so that everything happens many times in half a minute.
ENVIRONMENT = {
    "ROOST_LEASE": "1",
    "ROOST_LAG_WINDOW": "0.4",
    "ROOST_START_BUDGET": "6",
    "ROOST_GRACE_PERIOD": "5",
    "ROOST_RECONCILE_INTERVAL": "0.3",
    "ROOST_SWEEP_INTERVAL": "1",
    "ROOST_SWEEP": "act",
    "ROOST_SWEEP_MIN_AGE": "3",
    "ROOST_SWEEP_PASSES": "2",
    "ROOST_ABANDONED_AFTER": "4",
    "ROOST_GRACE": "2",
    # The counter is in memory only, so every cold boot resets it.
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
            # Whether a click on the preview of a paused session starts its machine or fails.
            emulator_options=("--no-limits", f"--set=autostart_default={self.clicks_wake}"),
            environment=environment,
        ).with_ports()
        self.stack = Stack(self.settings, self._rewired)
        self.relays: dict[str, NetFault] = {}
        self._open = AsyncExitStack()

    @property
    def targets(self) -> list[str]:
        """The addresses of the replicas, for callers; without a relay."""
        return self.stack.session_targets

    @property
    def database_url(self) -> str:
        """The URL of the database, for the checks; without a relay."""
        return self.stack.database_url

    async def restart(self, name: str, kill_at: str = "") -> None:
        """Start a killed program again, with the failpoint `kill_at` armed if given."""
        program = self.stack.programs[name]
        environment = {k: v for k, v in program.environment.items() if k != failpoints.VARIABLE}
        if kill_at:
            environment[failpoints.VARIABLE] = kill_at
        self.stack.programs[name] = replace(program, environment=environment)
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

    def _rewired(self, program: Program) -> Program:
        """The program, connected to the others through the relays."""
        more: dict[str, str] = {}
        if program.name == CONTAINERS:
            more["FLY_FLAPS_BASE_URL"] = f"http://{HOST}:{self.relays['fly'].port}"
            program = replace(
                program, command=(sys.executable, "-m", "tests.chaos.unlimited_container_service")
            )
        elif program.name in REPLICAS:
            url = urlsplit(program.environment["ROOST_DATABASE_URL"])
            where = url.netloc.rpartition(":")[0]
            netloc = f"{where}:{self.relays[f'{program.name}-database'].port}"
            more["ROOST_DATABASE_URL"] = urlunsplit(url._replace(netloc=netloc))
            port = self.relays[f"{program.name}-containers"].port
            more["ROOST_CONTAINER_TARGET"] = f"{HOST}:{port}"
        return replace(program, environment={**program.environment, **more})
