"""The proxy: it forwards to guests, and starts their machines."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from local.fly.admin import Admin
from local.fly.emulator import Emulator, serve
from local.fly.settings import Settings
from tests.local.fly.api_client import ApiClient, App, Machine, until

STREAMS = """
import os, pathlib, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Streams(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        name = 0
        while size := int(self.rfile.readline(), 16):
            pathlib.Path(f"part-{name}").write_bytes(self.rfile.read(size))
            self.rfile.readline()
            name += 1
        self.send_response(201)
        self.send_header("x-path", self.path)
        self.send_header("x-host", self.headers["host"])
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "11")
        self.end_headers()
        self.wfile.write(b"first")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        if self.path == "/short":
            self.close_connection = True
        else:
            self.wfile.write(b"second")

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Streams).serve_forever()
"""


class Browser:
    """Requests to the proxy."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """GET with these headers, whose underscores are dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.get(path, headers=named)

    async def text(self, path: str, machine: Machine) -> str:
        """GET from one machine."""
        reply = await self.get(path, fly_force_instance_id=machine.id)
        assert reply.status_code == 200, reply.text
        return reply.text


@pytest.fixture
async def browser(emulator: Emulator) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(
        base_url=emulator.proxy_url, trust_env=False, verify=False, timeout=30
    ) as http:
        yield Browser(http)


async def test_a_forced_instance_is_the_one_that_answers(app: App, browser: Browser) -> None:
    """Fly conformance case 80."""
    first, second = await app.started(), await app.started()
    assert [await browser.text("/click", first) for _ in range(3)] == ["1", "2", "3"]
    assert await browser.text("/", second) == "0"
    reply = await browser.get("/", fly_force_instance_id="00000000000000", host="birds.localhost")
    assert reply.status_code == 404
    elsewhere = await browser.get("/", fly_force_instance_id=first.id, host="bees.localhost")
    assert elsewhere.status_code == 404
    assert "fly-request-id" in elsewhere.headers


async def test_a_host_name_reaches_a_machine_or_any_of_an_app(app: App, browser: Browser) -> None:
    machine = await app.started()
    assert (await browser.get("/click", host=f"{machine.id}.birds.localhost:4281")).text == "1"
    assert (await browser.get("/click", host="birds.localhost")).text == "2"
    assert (await browser.get("/click", fly_app_name="birds")).text == "3"
    for headers in ({}, {"host": "bees.localhost"}, {"host": f"{machine.id}.bees.localhost"}):
        assert (await browser.get("/", **headers)).status_code == 404


async def test_a_path_reaches_a_machine_for_clients_that_resolve_no_name(
    app: App, browser: Browser
) -> None:
    """The guest sees the rest of the path; a browser's host name leaves the path alone."""
    machine = await app.started()
    address = f"/_machine/{machine.id}"
    assert (await browser.get(f"{address}/click")).text == "1"
    assert (await browser.get(f"{address}/click?again=%2F")).text == "2"
    for path in (f"{address}/", address):
        assert (await browser.get(path)).text == "2"
    assert (await browser.get(f"{address}/state", fly_force_instance_id=machine.id)).text == "2\n"
    for path in ("/_machine/00000000000000/", "/_machine/", "/_machine"):
        assert (await browser.get(path)).status_code == 404
    named = await browser.get(f"{address}/click", host=f"{machine.id}.birds.localhost:4281")
    assert named.status_code == 404, "the counter has no such path"


async def test_a_suspended_machine_is_resumed_with_its_memory(
    app: App, browser: Browser, admin: Admin
) -> None:
    """Fly conformance case 80."""
    machine = await app.started(services=[{"internal_port": 8080, "autostart": True}])
    await browser.text("/click", machine)
    await machine.suspended()
    assert await browser.text("/click", machine) == "2"
    starts = [action for action in await admin.actions() if action.action == "start"]
    assert [(start.machine, start.source) for start in starts] == [(machine.id, "proxy")]


async def test_a_stopped_machine_is_started_for_all_waiting_requests(
    app: App, browser: Browser
) -> None:
    machine = await app.started()
    await machine.stopped()
    counts = await asyncio.gather(*(browser.text("/click", machine) for _ in range(10)))
    assert sorted(map(int, counts)) == list(range(1, 11))


async def test_a_request_during_a_suspend_waits_for_it_and_resumes_the_machine(
    app: App, browser: Browser
) -> None:
    machine = await app.started()
    await browser.text("/click", machine)
    await machine.post("suspend")
    assert await browser.text("/click", machine) == "2"


@pytest.mark.parametrize(
    ("default", "services", "started"),
    [
        (True, [], True),
        (False, [], False),
        (True, [{"internal_port": 80}], True),
        (False, [{"internal_port": 80, "autostart": True}], True),
        (True, [{"internal_port": 80, "autostart": False}], False),
    ],
)
async def test_autostart_decides_whether_traffic_starts_a_machine(
    settings: Settings, default: bool, services: list[object], started: bool
) -> None:
    async with (
        serve(replace(settings, autostart_default=default)) as emulator,
        ApiClient(emulator.api_url) as client,
        httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        machine = await App(client, "birds").started(services=services)
        await machine.suspended()
        headers = {"fly-force-instance-id": machine.id}
        reply = await http.get(emulator.proxy_url, headers=headers)
        assert reply.status_code == (200 if started else 503)
        assert await machine.state() == ("started" if started else "suspended")


async def test_a_cordoned_machine_gets_no_traffic(app: App, browser: Browser) -> None:
    """Fly conformance case 70."""
    machine = await app.started()
    for _ in range(2):
        assert await machine.post("cordon") == {"ok": True}
    assert (await machine.get())["cordoned"] is True
    for headers in ({"fly_force_instance_id": machine.id}, {"host": "birds.localhost"}):
        assert (await browser.get("/", **headers)).status_code == 503
    await machine.suspended()
    assert (await browser.get("/", fly_force_instance_id=machine.id)).status_code == 503
    assert await machine.state() == "suspended"
    for _ in range(2):
        assert await machine.post("uncordon") == {"ok": True}
    assert await browser.text("/", machine) == "0"


async def test_a_leased_machine_is_not_started(app: App, browser: Browser) -> None:
    machine = await app.started()
    await machine.suspended()
    await machine.post("lease", {"ttl": 30}, status=201)
    reply = await browser.get("/", fly_force_instance_id=machine.id)
    assert reply.status_code == 503
    assert "lease currently held" in reply.text


async def test_a_destroyed_machine_gets_no_traffic(app: App, browser: Browser) -> None:
    machine = await app.started()
    await machine.delete(force="true")
    await machine.wait("destroyed")
    for headers in ({"fly_force_instance_id": machine.id}, {"host": "birds.localhost"}):
        assert (await browser.get("/", **headers)).status_code == 503


async def test_a_request_is_streamed_as_it_was_sent(app: App, browser: Browser) -> None:
    machine = await app.running("python3", "-c", STREAMS)

    async def noted() -> bool:
        return bool((await machine.run("cat", "part-0"))["stdout"] == "first")

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        # The second part is sent only after the first has arrived: the proxy does not buffer.
        await until(noted)
        yield b"second"

    headers = {"fly-force-instance-id": machine.id, "host": "birds.localhost"}
    reply = await browser.http.post("/a%2Fb?c=%20d", content=body(), headers=headers)
    assert reply.status_code == 201
    assert reply.headers["x-path"] == "/a%2Fb?c=%20d"
    assert reply.headers["x-host"] == "birds.localhost"
    assert (await machine.run("cat", "part-1"))["stdout"] == "second"


async def test_an_answer_is_streamed(app: App, browser: Browser) -> None:
    machine = await app.running("python3", "-c", STREAMS)
    headers = {"fly-force-instance-id": machine.id}
    async with browser.http.stream("GET", "/", headers=headers) as reply:
        parts = reply.aiter_bytes()
        assert await anext(parts) == b"first"
        await machine.run("touch", "go")
        assert await anext(parts) == b"second"


async def test_an_answer_cut_short_is_cut_short_for_the_client(app: App, browser: Browser) -> None:
    machine = await app.running("python3", "-c", STREAMS)
    await machine.run("touch", "go")
    with pytest.raises(httpx.RemoteProtocolError):
        await browser.get("/short", fly_force_instance_id=machine.id)


async def test_a_guest_that_never_listens_is_a_503(settings: Settings) -> None:
    async with (
        serve(replace(settings, ready_ms=200)) as emulator,
        ApiClient(emulator.api_url) as client,
        httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        machine = await App(client, "birds").running("sleep", "1000")
        headers = {"fly-force-instance-id": machine.id}
        assert (await http.get(emulator.proxy_url, headers=headers)).status_code == 503


ROUTER = """
import os, pathlib
from http.server import BaseHTTPRequestHandler, HTTPServer

class Router(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        goes = os.environ.get("GOES") or self.headers.get("x-goes")
        self.send_response(200)
        if goes and "fly-replay-src" not in self.headers:
            self.send_header("fly-replay", goes)
        self.end_headers()
        source = self.headers.get("fly-replay-src", "")
        missing = self.headers.get("fly-preferred-instance-unavailable", "")
        self.wfile.write(f"{os.environ['FLY_MACHINE_ID']} {len(body)} {missing} {source}".encode())

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Router).serve_forever()
"""


async def routers(app: App) -> list[Machine]:
    return [await app.running("python3", "-c", ROUTER) for _ in range(2)]


async def test_a_guest_has_a_request_replayed_at_another(app: App, browser: Browser) -> None:
    first, second = await routers(app)
    await second.stopped()
    headers = {
        "fly-force-instance-id": first.id,
        "x-goes": f"app=birds;instance={second.id};state=x",
    }
    reply = await browser.http.post("/", content=b"x" * 1000, headers=headers)
    fields = reply.text.split(" ")
    # The target was started, gets the whole body, and the header names the first machine.
    assert fields[:2] == [second.id, "1000"]
    assert f"instance={first.id};" in fields[3]
    assert "fly-replay" not in reply.headers


async def test_what_cannot_be_replayed_is_an_error(app: App, browser: Browser) -> None:
    first, second = await routers(app)
    headers = {"fly-force-instance-id": first.id, "x-goes": f"instance={second.id}"}
    large = await browser.http.post("/", content=b"x" * 1_100_000, headers=headers)
    assert large.status_code == 502
    headers["x-goes"] = "instance=00000000000000"
    assert (await browser.http.post("/", content=b"x", headers=headers)).status_code == 404


async def test_a_preferred_machine_is_taken_if_it_can_be(app: App, browser: Browser) -> None:
    first, second = await routers(app)
    headers = {"host": "birds.localhost", "fly-prefer-instance-id": second.id}
    reply = await browser.http.post("/", content=b"x", headers=headers)
    assert reply.text.split(" ")[:3] == [second.id, "1", ""]
    await second.post("cordon")
    reply = await browser.http.post("/", content=b"x", headers=headers)
    assert reply.text.split(" ")[:3] == [first.id, "1", second.id]
