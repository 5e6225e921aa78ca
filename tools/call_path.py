"""Count the modules that a call runs through, and its statements: `python -m tools.call_path`.

A whole Roost runs in this process (PostgreSQL, the Fly emulator, container_service and one replica
of session_service), and a profile hook notes the module of every function that the call's own tasks
enter. Background loops, the health check and the listener for notifications are not counted, nor
are generated code, `__init__` modules and what an import runs. Each call is made once before, so
that nothing is compiled or imported while it is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from local.fly.emulator import serve
from local.fly.settings import Settings
from roost.agent.v1 import agent_session_pb2
from roost.agent.v1 import agent_session_service_pb2 as agent_pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from session_service.storage.migrate import upgrade
from tests.container.harness import TOKEN, make_app
from tests.database import Databases, running_server
from tests.session.harness import TIMEOUT, request_id, world
from tests.session.saving import hooked
from tests.session.tracing import Trace, Tracer, tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.session.harness import World

PACKAGE = "session_service"


@dataclass(frozen=True)
class Measured:
    """A call, and what it ran through."""

    call: str
    modules: list[str]
    statements: int


async def measure(tracer: Tracer, call: str, make: Callable[[], Awaitable[object]]) -> Measured:
    """Make the call, and follow it and the work that it leaves behind."""
    with tracer.tracing_next(Trace(PACKAGE)) as trace:
        await make()
        await trace.settled()
    return Measured(call, sorted(trace.modules), len(trace.statements))


async def measure_starts(roost: World, tracer: Tracer) -> list[Measured]:
    """StartSession that reuses, and ResumeSession."""
    session_id = (await roost.one.start()).session.session_id
    reuse = await measure(
        tracer, "StartSession, REUSED", lambda: roost.one.start(request_id=request_id())
    )
    await roost.one.pause(session_id)
    resume = await measure(
        tracer,
        "ResumeSession, RESUMED",
        lambda: roost.one.resume(session_id, request_id=request_id()),
    )
    await roost.one.end(session_id)
    return [reuse, resume]


async def measure_stop(roost: World, tracer: Tracer) -> list[Measured]:
    """StopSession where the policy says that state is saved and the container destroyed."""
    session = (await roost.one.start(spec=hooked())).session
    await roost.counter(session, "/click")
    call = "StopSession, policy CHECKPOINT"
    stop = await measure(
        tracer, call, lambda: roost.one.stop(session.session_id, request_id=request_id())
    )
    await roost.one.end(session.session_id)
    return [stop]


async def measure_append(roost: World, tracer: Tracer) -> list[Measured]:
    """AppendTurn."""
    agents = AgentSessionServiceStub(roost.one.channel)
    create = agent_pb.CreateAgentSessionRequest(agent_role="ceo")
    created = await agents.CreateAgentSession(create, timeout=TIMEOUT)
    message = agent_session_pb2.Message(role="user", content="hello", tokens=1)
    turn = agent_pb.AppendTurnRequest(
        session_id=created.agent_session.session_id, messages=[message], request_id=request_id()
    )
    return [await measure(tracer, "AppendTurn", lambda: agents.AppendTurn(turn, timeout=TIMEOUT))]


#: How each call is measured, and the persistence that its sessions have.
CALLS = (
    (measure_starts, "hibernate"),
    (measure_stop, "checkpoint"),
    (measure_append, "hibernate"),
)


async def measure_all(folder: Path, url: str) -> list[Measured]:
    """Every call, as it is the second time."""
    settings = Settings(
        data=folder / "fly", port=0, proxy_port=0, token=TOKEN, create_ms=5, start_ms=5,
        resume_ms=5, suspend_ms=20, destroy_ms=5, limits=False,
    )  # fmt: skip
    found: list[Measured] = []
    async with serve(settings) as emulator:
        await make_app(emulator)
        for steps, persistence in CALLS:
            with tracing() as tracer:
                async with world(
                    emulator,
                    url,
                    replicas=1,
                    persistence=persistence,
                    # No lease is renewed while a call is counted.
                    lease=timedelta(seconds=30),
                ) as roost:
                    await steps(roost, tracer)
                    found += await steps(roost, tracer)
    return found


def table(found: Sequence[Measured], *, listed: bool) -> str:
    """The figures, and the modules if they are wanted."""
    lines = [f"{'call':<32}{'modules':>8}{'statements':>12}"]
    lines += [f"{each.call:<32}{len(each.modules):>8}{each.statements:>12}" for each in found]
    if listed:
        for each in found:
            lines += ["", f"{each.call}: {len(each.modules)} modules"]
            lines += [f"  {name}" for name in each.modules]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.call_path", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the modules of each call")
    listed: bool = parser.parse_args(argv).list
    with tempfile.TemporaryDirectory() as folder, running_server() as server:
        url = Databases(server).create()
        upgrade(url)
        found = asyncio.run(measure_all(Path(folder), url))
    print(table(found, listed=listed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
