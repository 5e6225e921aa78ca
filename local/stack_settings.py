"""What a local stack is made of: folder, ports, replicas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """How one stack runs. A port of 0 is a free one, chosen at the start and kept until the end."""

    data: Path = Path(".roost")
    """Folder of everything that outlives the stack, and of the logs."""

    fresh: bool = False
    """Whether to begin with an empty folder."""

    durable: bool = True
    """Whether the embedded PostgreSQL syncs to disk; only tests can do without."""

    database_url: str | None = None
    """A PostgreSQL to use in place of the embedded one."""

    session_ports: tuple[int, ...] = (50051,)
    """One replica of session_service for each."""

    container_port: int = 50052
    """Port of container_service."""

    fly_port: int = 4280
    """Port of the emulator's Machines API."""

    proxy_port: int = 4281
    """Port of the emulator's proxy, where the previews are."""

    postgres_port: int = 0
    """Port of the embedded PostgreSQL."""

    app: str = "roost-local"
    """The Fly app of all containers; made when it is missing."""

    emulator_options: tuple[str, ...] = ()
    """Further arguments of `python -m local fly`."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables of both services; none of ROOST_* and FLY_* is taken from ours."""

    @classmethod
    def on_free_ports(cls, data: Path, replicas: int = 1) -> StackSettings:
        """A stack that gets in nobody's way."""
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
        """Where previews answer, for the services to fill in."""
        return f"http://{{container_id}}.{{app}}.localhost:{self.proxy_port}/"

    @property
    def logs(self) -> Path:
        """Folder of the parts' logs."""
        return self.data / "logs"

    def with_ports(self) -> StackSettings:
        """The same, with a port for every 0 but PostgreSQL's, which chooses for itself."""
        return replace(
            self,
            session_ports=tuple(port or free_port() for port in self.session_ports),
            container_port=self.container_port or free_port(),
            fly_port=self.fly_port or free_port(),
            proxy_port=self.proxy_port or free_port(),
        )

    def fixed_ports(self) -> list[tuple[str, int]]:
        """The ports that must be ours, each with the option that chooses another."""
        ports = [
            *(("--session-port", port) for port in self.session_ports),
            ("--container-port", self.container_port),
            ("--fly-port", self.fly_port),
            ("--proxy-port", self.proxy_port),
            ("--postgres-port", 0 if self.database_url else self.postgres_port),
        ]
        return [(option, port) for option, port in ports if port]
