"""One call of the API, its answer, and what the API offers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers, QueryParams

from local.fly.limits import Rate
from local.fly.machines import Machine
from local.fly.wire import JsonObject, parse_object
from local.fly.world import World

NONCE_HEADER = "fly-machine-lease-nonce"


@dataclass(frozen=True)
class Call:
    """A request whose body has been read: what it says does not depend on its client any more."""

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
        """What the rate limits count it on: a machine, a volume, an app or an organisation."""
        named = (self.machine_id, self.volume_id, self.app, self.path.get("org", ""))
        return next((name for name in named if name), "")

    @property
    def nonce(self) -> str:
        """The lease nonce it carries, empty when there is none."""
        return self.headers.get(NONCE_HEADER, "")

    def json(self, target: str) -> JsonObject:
        """The body as an object; `target` is the Go type that a refusal names."""
        return parse_object(self.body, target)

    def flag(self, name: str) -> bool:
        """A boolean of the query, false when absent."""
        return self.query.get(name, "").lower() in ("1", "true", "t")

    def machine(self, world: World) -> Machine:
        """The machine in the path, as mutations find it."""
        return world.fleet.machine(self.app, self.machine_id)

    def seen_machine(self, world: World) -> Machine:
        """The machine in the path, as reads find it."""
        return world.fleet.seen_machine(self.app, self.machine_id)


@dataclass(frozen=True)
class Reply:
    """An answer: status and a JSON body, or text in its place; None is an empty body."""

    status: int
    json: object = None
    text: str | None = None


OK = Reply(200, {"ok": True})

Handler = Callable[[World, Call], Awaitable[Reply]]


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
