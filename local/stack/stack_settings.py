"""The settings of a local stack: folder, ports, replicas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Begins the path of a preview at the proxy of the emulator, which runs as a program of its own.
MACHINE_PATH = "/_machine/"


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """The settings of one stack. Port 0 means a free one, chosen at the start and then kept."""

    data: Path = Path(".roost")
    """Folder for the data, which outlives the stack, and the logs."""

    fresh: bool = False
    """Whether to delete earlier data and logs at the start."""

    durable: bool = True
    """Whether the embedded PostgreSQL syncs to disk. False only in tests."""

    database_url: str | None = None
    """The URL of a PostgreSQL to use in place of the embedded one."""

    session_ports: tuple[int, ...] = (50051,)
    """The ports of the session_service replicas, one each."""

    container_port: int = 50052
    """Port of container_service."""

    fly_port: int = 4280
    """Port of the emulator's Machines API."""

    proxy_port: int = 4281
    """Port of the emulator's proxy, which serves the previews."""

    postgres_port: int = 0
    """Port of the embedded PostgreSQL."""

    app: str = "roost-local"
    """The Fly app of all containers; created when missing."""

    emulator_options: tuple[str, ...] = ()
    """Additional arguments of `python -m local fly`."""

    start_seconds: float = 60.0
    """How long one program may take to start, in s."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Additional variables of both services, which do not inherit our ROOST_* and FLY_*."""

    @classmethod
    def on_free_ports(cls, data: Path, replicas: int = 1) -> StackSettings:
        """Settings with free ports only, for a stack beside others."""
        zeros = (0,) * replicas
        return cls(data=data, session_ports=zeros, container_port=0, fly_port=0, proxy_port=0)

    @property
    def fly_url(self) -> str:
        """Base URL of the emulator's Machines API."""
        return f"http://{HOST}:{self.fly_port}"

    @property
    def proxy_url(self) -> str:
        """Base URL of the emulator's proxy."""
        return f"http://{HOST}:{self.proxy_port}"

    @property
    def url_template(self) -> str:
        """The preview URL that every client can open, with placeholders that the services fill
        in.
        """
        return f"{self.proxy_url}{MACHINE_PATH}{{container_id}}/"

    @property
    def browser_template(self) -> str:
        """The same preview for a browser, where absolute paths of its pages are right too. Other
        clients may not resolve the name.
        """
        return f"http://{{container_id}}.{{app}}.localhost:{self.proxy_port}/"

    @property
    def logs(self) -> Path:
        """Folder of the programs' logs."""
        return self.data / "logs"

    def with_ports(self) -> StackSettings:
        """A copy with a free port for every 0, except for PostgreSQL, which chooses its own."""
        return replace(
            self,
            session_ports=tuple(port or free_port() for port in self.session_ports),
            container_port=self.container_port or free_port(),
            fly_port=self.fly_port or free_port(),
            proxy_port=self.proxy_port or free_port(),
        )

    def fixed_ports(self) -> list[tuple[str, int]]:
        """The requested ports, each with the command line option that changes it."""
        ports = [
            *(("--session-port", port) for port in self.session_ports),
            ("--container-port", self.container_port),
            ("--fly-port", self.fly_port),
            ("--proxy-port", self.proxy_port),
            ("--postgres-port", 0 if self.database_url else self.postgres_port),
        ]
        return [(option, port) for option, port in ports if port]
