"""A thin client of the Machines API for tests: paths and JSON."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import httpx

from tests.eventually import eventually

COUNTER = "roost/counter"
BASE = "roost/base"

# JSON of the API; the assertions of the tests are the validation.
Json = Any


class ApiClient:
    """One httpx client with a token."""

    def __init__(self, api_url: str, token: str = "test-token") -> None:
        self.http = httpx.AsyncClient(
            base_url=api_url,
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
            verify=False,  # nothing here is TLS, and loading the authorities takes 20 ms
            timeout=30,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def send(
        self, method: str, path: str, json: Json = None, nonce: str = "", **params: Json
    ) -> httpx.Response:
        """One request; `nonce` is the lease nonce, other arguments are the query."""
        headers = {"fly-machine-lease-nonce": nonce} if nonce else {}
        return await self.http.request(
            method, path, json=json, headers=headers, params=params or None
        )

    async def expect(
        self, status: int, method: str, path: str, json: Json = None, **params: Json
    ) -> Json:
        """Send a request and assert its status; return the JSON, None for an empty body."""
        reply = await self.send(method, path, json, **params)
        assert reply.status_code == status, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None


class App:
    """An app that exists."""

    def __init__(self, client: ApiClient, name: str) -> None:
        self.client = client
        self.name = name
        self.machines = f"/v1/apps/{name}/machines"

    async def create(self, status: int = 200, /, **body: Json) -> Json:
        """Create a machine with the counter image unless a config is given."""
        body.setdefault("config", {"image": COUNTER})
        return await self.client.expect(status, "POST", self.machines, body)

    async def started(self, **config: Json) -> "Machine":
        """A machine that has started."""
        made = await self.create(config={"image": COUNTER, **config})
        machine = Machine(self, made["id"])
        await machine.wait("started")
        return machine

    async def running(self, *command: str, **config: Json) -> "Machine":
        """A started machine that runs this command."""
        return await self.started(**{"image": BASE, "init": {"exec": command}, **config})

    async def list(self, **query: Json) -> Json:
        """List its machines."""
        return await self.client.expect(200, "GET", self.machines, **query)


class Machine:
    """A machine of an app, by its id."""

    def __init__(self, app: App, machine_id: str) -> None:
        self.id = machine_id
        self.path = f"{app.machines}/{machine_id}"
        self._client = app.client

    async def get(self) -> Json:
        """The Machine object."""
        return await self._client.expect(200, "GET", self.path)

    async def state(self) -> str:
        """Its state."""
        return str((await self.get())["state"])

    async def post(self, verb: str, json: Json = None, status: int = 200, **query: Json) -> Json:
        """POST one of its verbs."""
        return await self._client.expect(status, "POST", f"{self.path}/{verb}", json, **query)

    async def wait(self, state: str, status: int = 200, **query: Json) -> Json:
        """Wait for a state."""
        query = {"state": state, "timeout": 20, **query}
        return await self._client.expect(status, "GET", f"{self.path}/wait", **query)

    async def suspended(self) -> None:
        """Suspend and wait for it."""
        await self.post("suspend")
        await self.wait("suspended")

    async def stopped(self) -> None:
        """Stop and wait for it."""
        await self.post("stop")
        await self.wait("stopped")

    async def resumed(self) -> None:
        """Start and wait for it."""
        await self.post("start")
        await self.wait("started")

    async def run(self, *command: str, **more: Json) -> Json:
        """Exec a command."""
        return await self.post("exec", {"command": command, **more})

    async def boot_id(self) -> str:
        """The boot id that an exec reads."""
        return str((await self.run("cat", "/proc/sys/kernel/random/boot_id"))["stdout"]).strip()

    async def delete(self, status: int = 200, /, **query: Json) -> Json:
        """DELETE it."""
        return await self._client.expect(status, "DELETE", self.path, **query)


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a check holds, for effects of another process."""
    fn: Callable[[], Awaitable[bool] | bool] = check
    await eventually(fn)


def error_of(reply: httpx.Response) -> Mapping[str, str]:
    """An error body, checked for its shape: JSON with a string under `error` or `message`."""
    body: dict[str, str] = reply.json()
    assert isinstance(body.get("error", body.get("message")), str)
    assert isinstance(body.get("status", ""), str)
    return body
