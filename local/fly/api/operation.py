"""The types of the API: a call, its reply, and an operation that handles it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers, QueryParams

from local.fly.go_json import JsonObject, parse_object
from local.fly.machines.machine import Machine
from local.fly.rate_limits import Rate
from local.fly.wiring import Backend

NONCE_HEADER = "fly-machine-lease-nonce"


@dataclass(frozen=True)
class Call:
    """A request whose whole body has been read, so that it no longer depends on its client."""

    path: Mapping[str, str]
    query: QueryParams
    headers: Headers
    body: bytes
    token: str

    @property
    def app(self) -> str:
        """The app named in the path, empty when there is none."""
        return self.path.get("app", "")

    @property
    def machine_id(self) -> str:
        """The machine named in the path, empty when there is none."""
        return self.path.get("machine", "")

    @property
    def volume_id(self) -> str:
        """The volume named in the path, empty when there is none."""
        return self.path.get("volume", "")

    @property
    def subject(self) -> str:
        """The identifier that rate limits count by: machine, volume, app or organisation."""
        named = (self.machine_id, self.volume_id, self.app, self.path.get("org", ""))
        return next((name for name in named if name), "")

    @property
    def nonce(self) -> str:
        """The lease nonce it carries, empty when there is none."""
        return self.headers.get(NONCE_HEADER, "")

    def json(self, target: str) -> JsonObject:
        """The body as a JSON object; `target` is the Go type that an error message names."""
        return parse_object(self.body, target)

    def flag(self, name: str) -> bool:
        """A boolean query parameter, False when absent."""
        return self.query.get(name, "").lower() in ("1", "true", "t")

    def machine(self, backend: Backend) -> Machine:
        """The machine in the path, for mutations: always current. Raises a 404."""
        return backend.fleet.machine(self.app, self.machine_id)

    def visible_machine(self, backend: Backend) -> Machine:
        """The machine in the path, for reads: a new one may not be visible yet. Raises a 404."""
        return backend.fleet.visible_machine(self.app, self.machine_id)


@dataclass(frozen=True)
class Reply:
    """A response: status, and a JSON body or a text body; both None is an empty body."""

    status: int
    json: object = None
    text: str | None = None


OK = Reply(200, {"ok": True})

Handler = Callable[[Backend, Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Operation:
    """One operation of the API.

    `leased` ones are mutations that the machine's lease guards. `action` names it in the request
    log, in faults and in the rate limits, which count by action and by machine, app or nothing.
    """

    action: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    leased: bool = False
    rate: Rate | None = None

    @property
    def route(self) -> str:
        """Method and path as faults and the request log name it."""
        return f"{self.method} {self.path}"
