"""The programs of the stack, with their commands and environments."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from local.stack.stack_settings import StackSettings

#: The emulator accepts any token. A real token in the environment is never passed on.
TOKEN = "local"


@dataclass(frozen=True)
class Program:
    """One program of the stack."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    target: str
    """The address on which it listens, host:port."""
    log: Path

    @property
    def address(self) -> str:
        """The address on which it listens, for display."""
        return f"http://{self.target}" if self.name == "emulator" else f"{self.target}  (gRPC)"


def plan(settings: StackSettings, database_url: str) -> list[Program]:
    """The programs, in the order in which they start. All ports must be chosen."""
    container = f"{HOST}:{settings.container_port}"
    programs = [_emulator(settings), _container_service(settings, container)]
    for number, port in enumerate(settings.session_ports, 1):
        name = "session_service" if number == 1 else f"session_service_{number}"
        programs.append(_session_service(settings, name, f"{HOST}:{port}", container, database_url))
    return programs


def _emulator(settings: StackSettings) -> Program:
    ports = (f"--port={settings.fly_port}", f"--proxy-port={settings.proxy_port}")
    options = (f"--data={settings.data / 'fly'}", *ports, *settings.emulator_options)
    command = _python("local", "fly", *options)
    target = f"{HOST}:{settings.fly_port}"
    return Program("emulator", command, _inherited(), target, settings.logs / "emulator.log")


def _container_service(settings: StackSettings, target: str) -> Program:
    variables = {
        "FLY_API_TOKEN": TOKEN,
        "FLY_FLAPS_BASE_URL": settings.fly_url,
        "ROOST_CONTAINER_LISTEN": target,
        "ROOST_FLY_APP": settings.app,
        "ROOST_URL_TEMPLATE": settings.url_template,
    }
    return _service(settings, "container_service", "container_service", target, variables)


def _session_service(
    settings: StackSettings, name: str, target: str, container: str, database_url: str
) -> Program:
    variables = {
        "ROOST_DATABASE_URL": database_url,
        "ROOST_SESSION_LISTEN": target,
        "ROOST_CONTAINER_TARGET": container,
        "ROOST_FLY_APP": settings.app,
        "ROOST_URL_TEMPLATE": settings.url_template,
    }
    return _service(settings, name, "session_service", target, variables)


def _service(
    settings: StackSettings, name: str, module: str, target: str, variables: Mapping[str, str]
) -> Program:
    # With a default image, a first StartSession needs only a key. No load balancer looks at the
    # health of this stack, so nothing is gained by a wait before its stop.
    default = {"ROOST_DEFAULT_IMAGE": "roost/counter", "ROOST_LAME_DUCK": "0"}
    environment = {**_inherited(), **default, **settings.environment, **variables}
    return Program(name, _python(module), environment, target, settings.logs / f"{name}.log")


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _inherited() -> dict[str, str]:
    """Our environment without ROOST_* and FLY_*, which are meant for other services."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("ROOST_", "FLY_"))}
