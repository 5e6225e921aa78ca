"""An HTTP client of the Machines API for the conformance tests. It uses no code of Roost."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.schema import Document

# JSON of the API; the assertions of the tests are the validation.
Json = Any
T = TypeVar("T")


@dataclass
class Spend:
    """The limit on machines of a run against a provider that costs money."""

    machines_left: int

    def machine(self) -> None:
        """Count a create before it is sent; fail beyond the limit."""
        assert self.machines_left > 0, "this run has made as many machines as it may"
        self.machines_left -= 1


@dataclass
class Api:
    """One provider: its base URL, a token, and the document that validates its replies."""

    base_url: str
    token: str
    document: Document | None
    spend: Spend
    paced: bool = False
    """Whether to retry after a 429, for a provider with rate limits."""
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(
            base_url=self.base_url, timeout=90, trust_env=self.base_url.startswith("https:")
        )

    def __enter__(self) -> Api:
        """Return the client, ready for use."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self.http.close()

    def send(
        self,
        method: str,
        path: str,
        json: Json = None,
        *,
        headers: dict[str, str] | None = None,
        nonce: str = "",
        **query: Json,
    ) -> httpx.Response:
        """Send one request with the token and validate the reply."""
        given = {"authorization": f"Bearer {self.token}", **(headers or {})}
        if nonce:
            given["fly-machine-lease-nonce"] = nonce
        if method == "POST" and path.endswith("/machines"):
            self.spend.machine()
        while True:
            reply = self.http.request(method, path, json=json, headers=given, params=query or None)
            if reply.status_code != 429 or not self.paced:
                break
            time.sleep(1.1)
        assert reply.headers.get("fly-request-id"), f"{method} {path} has no fly-request-id"
        if self.document is not None:
            self.document.check(method, path, reply)
        return reply

    def expect(self, status: int, method: str, path: str, json: Json = None, **more: Json) -> Json:
        """Send a request and assert its status; return the JSON, None for an empty body."""
        reply = self.send(method, path, json, **more)
        assert reply.status_code == status, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

    def fault(self, kind: str, **options: Json) -> None:
        """Set a fault in the emulator."""
        reply = self.http.post("/_emulator/faults", json={"kind": kind, **options})
        assert reply.status_code == 201, reply.text


@dataclass
class App:
    """An app that exists."""

    api: Api
    name: str
    image: str

    @property
    def path(self) -> str:
        """Its path."""
        return f"/v1/apps/{self.name}"

    def config(self, *command: str, **config: Json) -> Json:
        """A machine config, by default with a command that sleeps."""
        words = list(command) or ["sleep", "1000"]
        guest = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
        return {"image": self.image, "init": {"exec": words}, "guest": guest, **config}

    def create(self, status: int = 200, /, *, config: Json = None, **body: Json) -> Json:
        """Create a machine."""
        body["config"] = self.config() if config is None else config
        return self.api.expect(status, "POST", f"{self.path}/machines", body)

    def machine(self, *command: str, state: str = "started", **config: Json) -> Machine:
        """Create a machine with this command and wait for a state."""
        made = self.create(config=self.config(*command, **config), name=unique("m"))
        machine = Machine(self, made["id"])
        machine.wait(state)
        return machine

    def scripted(self, script: str, **config: Json) -> Machine:
        """Create a machine that runs a shell script; wait until the script did `touch ready`."""
        machine = self.machine("sh", "-c", script, **config)
        until(lambda: machine.run("sh", "-c", "test ! -e ready || echo yes") == "yes\n")
        return machine

    def list(self, **query: Json) -> Json:
        """List its machines."""
        return self.api.expect(200, "GET", f"{self.path}/machines", **query)


@dataclass
class Machine:
    """A machine by its id."""

    app: App
    id: str

    @property
    def path(self) -> str:
        """Its path."""
        return f"{self.app.path}/machines/{self.id}"

    def call(self, status: int, method: str, verb: str = "", json: Json = None, **m: Json) -> Json:
        """Send a request for this machine and assert its status."""
        path = f"{self.path}/{verb}" if verb else self.path
        return self.app.api.expect(status, method, path, json, **m)

    def get(self) -> Json:
        """The Machine object."""
        return self.call(200, "GET")

    def post(self, verb: str, json: Json = None, status: int = 200, **more: Json) -> Json:
        """POST one of its verbs."""
        return self.call(status, "POST", verb, json, **more)

    def wait(self, state: str, status: int = 200, **query: Json) -> Json:
        """Wait for a state."""
        query = {"state": state, "timeout": 60, **query}
        return self.call(status, "GET", "wait", **query)

    def goes(self, verb: str, state: str) -> None:
        """POST a verb and wait for the state that follows; retry while the machine is busy."""

        def accepted() -> bool:
            reply = self.app.api.send("POST", f"{self.path}/{verb}")
            assert reply.status_code in (200, 412), reply.text
            return reply.status_code == 200

        until(accepted)
        self.wait(state)

    def update(self, status: int = 200, /, *, config: Json, **more: Json) -> Json:
        """Replace its config."""
        return self.call(status, "POST", json={"config": config, **more})

    def run(self, *command: str) -> str:
        """Run a command in the machine; return its output."""
        done = self.post("exec", {"command": list(command)})
        assert done.get("exit_code", 0) == 0, done
        return str(done.get("stdout", ""))

    def boot_id(self) -> str:
        """The boot id of its kernel."""
        return self.run("cat", "/proc/sys/kernel/random/boot_id").strip()

    def exit_event(self) -> Json:
        """The details of the newest exit event."""
        events = [one for one in self.get()["events"] if one["type"] == "exit"]
        request = events[0]["request"]
        return request.get("exit_event") or request["MonitorEvent"]["exit_event"]


def unique(prefix: str) -> str:
    """A unique name with this prefix."""
    return f"{prefix}-{secrets.token_hex(5)}"


def until(check: Callable[[], T], seconds: float = 30.0) -> T:
    """Repeat a check until it holds, for asynchronous effects at the provider."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds} s"
        time.sleep(0.02)
    return answer


def error_of(reply: httpx.Response) -> str:
    """The text of an error, after validating its envelope."""
    assert "application/json" in reply.headers["content-type"]
    body = reply.json()
    assert isinstance(body.get("status", ""), str)
    text = body.get("error", body.get("message"))
    assert isinstance(text, str)
    return text
