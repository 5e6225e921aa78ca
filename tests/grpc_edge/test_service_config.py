"""The service config of docs/production.md: what it names, and that three clients obey it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from grpc_edge.retry import NEVER, PUSHBACK_HEADER
from tests.contracts import SESSIONS
from tests.needs import needs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
(CONFIG,) = re.findall(
    r"```json\n(.*?)```", (ROOT / "docs" / "production.md").read_text(), re.DOTALL
)
SERVICE = "roost.session.v1.SessionService"
#: Begins the name of a method that changes nothing.
READS = ("Get", "Find", "List", "Preview", "Explain", "Search")
#: The deadline of a call, in s: no attempt of a busy machine may miss it.
SECONDS = 60
#: How long the server asks to wait, in ms; more than any backoff of the first attempts.
ASKED_MS = 900


def policy_of(service: str, method: str) -> Mapping[str, Any]:
    """The retry policy that a client uses. Any: JSON."""
    entries = json.loads(CONFIG)["methodConfig"]
    for name in ({"service": service, "method": method}, {"service": service}):
        for entry in entries:
            if name in entry["name"]:
                policy: Mapping[str, Any] = entry["retryPolicy"]
                return policy
    raise AssertionError(f"{service}/{method} has no policy")


def test_only_what_may_be_repeated_is_repeated_when_it_is_cancelled() -> None:
    """Every other method has a policy without CANCELLED. A new method has to be decided on."""
    for service in SESSIONS:
        for method in service.methods:
            safe = (
                "request_id" in method.input_type.fields_by_name
                or method.name.startswith(READS)
                or (method.server_streaming and not method.client_streaming)
            )
            codes = policy_of(service.full_name, method.name)["retryableStatusCodes"]
            assert ("CANCELLED" in codes) == safe, method.full_name
            assert {"UNAVAILABLE", "RESOURCE_EXHAUSTED"} <= set(codes)


def test_the_names_of_the_config_exist() -> None:
    methods = {service.full_name: set(service.methods_by_name) for service in SESSIONS}
    for entry in json.loads(CONFIG)["methodConfig"]:
        for name in entry["name"]:
            assert name["service"] in methods
            assert name.get("method") in {None, *methods[name["service"]]}


@dataclass
class Server:
    """A server that refuses calls as it is told, and notes when each attempt came."""

    target: str = ""
    refusals: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    """The next answers: a status and the pushback, none if it is empty. Then all succeed."""
    times: list[float] = field(default_factory=list)

    async def answer(self, _: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """Refuse, or answer."""
        self.times.append(monotonic())
        if self.refusals:
            code, pushback = self.refusals.pop(0)
            trailers = ((PUSHBACK_HEADER, pushback),) if pushback else ()
            await context.abort(code, "as told", trailers)
        return b""


@asynccontextmanager
async def serving() -> AsyncGenerator[Server]:
    """The server, with the methods that the test calls."""
    served = Server()
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(served.answer)
    handlers = {"StartSession": handler, "TouchSession": handler}
    server = grpc.aio.server()
    # The config asks for the health of each replica.
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    served.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield served
    finally:
        await checks.enter_graceful_shutdown()
        await server.stop(None)


async def python(target: str, method: str, _: Path) -> str:
    """The status of a call by grpcio."""
    options = [("grpc.service_config", CONFIG)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        # Any: requests and answers are bytes here.
        call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            await call(b"", timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


async def go(target: str, method: str, config: Path) -> str:
    """The status of a call by grpc-go."""
    said = await printed([needs("go-client")], {}, target, method, config)
    # Go writes `Unavailable` and `Canceled`.
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", said).upper().replace("CANCELED", "CANCELLED")


async def node(target: str, method: str, config: Path) -> str:
    """The status of a call by grpc-js."""
    client = str(ROOT / "tests/clients/node/client.js")
    modules = {"NODE_PATH": needs("node_modules")}
    return await printed([needs("node"), client], modules, target, method, config)


async def printed(
    command: Sequence[str], environment: Mapping[str, str], target: str, method: str, config: Path
) -> str:
    """What the client prints of an empty request."""
    process = await asyncio.create_subprocess_exec(
        *(*command, target, f"/{SERVICE}/{method}", "", str(config), str(SECONDS)),
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 2 * SECONDS)
    assert process.returncode == 0
    return out.decode().strip()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("client", [python, go, node], ids=lambda client: client.__name__)
async def test_a_client_repeats_as_the_config_and_the_server_say(
    client: Any, tmp_path: Path
) -> None:
    """Any: one of the three functions above."""
    config = tmp_path / "config.json"
    config.write_text(CONFIG)
    unavailable, cancelled = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
    asked = str(ASKED_MS)
    for method, refusals, status, attempts in (
        ("StartSession", [(unavailable, asked), (unavailable, asked)], "OK", 3),
        ("StartSession", [(grpc.StatusCode.RESOURCE_EXHAUSTED, NEVER)], "RESOURCE_EXHAUSTED", 1),
        ("StartSession", [(cancelled, "")], "OK", 2),
        ("TouchSession", [(cancelled, "")], "CANCELLED", 1),
        ("TouchSession", [(unavailable, "1")], "OK", 2),
    ):
        async with serving() as server:
            server.refusals = list(refusals)
            assert await client(server.target, method, config) == status, (method, refusals)
            assert len(server.times) == attempts, (method, refusals)
            for earlier, later in zip(server.times, server.times[1:], strict=False):
                if refusals[0][1] == asked:
                    assert later - earlier >= ASKED_MS / 1000
