"""Start-up and rest of both services, beside a process that only imports their run-time libraries.

User CPU of the imports: medians over rounds that alternate with the libraries alone. Memory (RSS)
and CPU of a service that serves and gets no calls: one look each, beside the libraries' memory in
the same run. All with the packages of the services' images only.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench import run_time_site
from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from local.stack.programs import Program

DATA = Path(".roost/bench-startup")
SITE = DATA.absolute() / "site"
ROUNDS = int(os.environ.get("ROOST_STARTUP_ROUNDS", "9"))
#: Time from the start of the services to the first look at them, in s.
SETTLE = 10.0
#: The time over which the CPU of the idle services is counted, in s.
IDLE = float(os.environ.get("ROOST_STARTUP_IDLE", "120"))

_GRPC = """
import argparse, asyncio, logging, ssl
import grpc, grpc.aio, httpx, uvloop
from google.protobuf import any_pb2, duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
"""
#: What the services import of others when they serve. `tests/unit/test_imports.py` compares.
LIBRARIES = {
    "container_service": _GRPC,
    "session_service": _GRPC
    + """
import psycopg, psycopg_pool, sqlalchemy, uuid_utils.compat
from sqlalchemy.dialects.postgresql import psycopg as _
""",
}
#: What these libraries import only when they are used, and a service at rest has used: a part of
#: the memory that they take without us.
LATER = {
    "container_service": "import anyio.lowlevel, anyio.streams.tls, certifi, httpcore",
    "session_service": "import certifi, httpcore",
}
#: All that serving imports, in the way in which the service imports it.
SERVING = {
    "container_service": "import container_service.main",
    "session_service": (
        "import session_service.main\n"
        "from session_service.cli.commands import COMMANDS\n"
        "COMMANDS['serve'].load()"
    ),
}
_TELL = """
import json, resource, sys
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_utime))
sys.stdout.flush()
sys.stdin.read()
"""
CPU_TARGET = {"session_service": 1.15}
MEMORY_TARGET = {"session_service": 17.0, "container_service": 8.0}
IDLE_TARGET = 0.0025
MB = 1e6


@dataclass(frozen=True)
class Process:
    """A process that has imported modules, and waits."""

    user: float
    """User CPU so far, in s."""

    rss: int
    """In bytes."""


@asynccontextmanager
async def importing(code: str) -> AsyncGenerator[Process]:
    """A process that has run `code`, as long as the context is open."""
    child = await asyncio.create_subprocess_exec(
        *run_time_site.command("-c", f"{code}\n{_TELL}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=run_time_site.environment(SITE),
        cwd=DATA,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        user = float(json.loads(await child.stdout.readline()))
        yield Process(user, psutil.Process(child.pid).memory_info().rss)
    finally:
        child.stdin.close()
        await child.wait()


async def run() -> None:
    """Measure and print."""
    run_time_site.make(SITE)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    floors: dict[str, float] = {}
    for service, libraries in LIBRARIES.items():
        await _imports(service, libraries)
        found = []
        for _ in range(3):
            async with importing(f"{libraries}\n{LATER[service]}") as process:
                found.append(process.rss)
        floors[service] = statistics.median(found)
    await _rest(floors)


async def _imports(service: str, libraries: str) -> None:
    """Print the user CPU and the memory of the imports, beside those of the libraries alone."""
    alone, all_of_it = [], []
    for number in range(ROUNDS + 1):
        async with importing(libraries) as base, importing(SERVING[service]) as mine:
            if number:  # the first round compiles the modules
                alone.append(base)
                all_of_it.append(mine)
    ratio = statistics.median(m.user / b.user for m, b in zip(all_of_it, alone, strict=True))
    base_rss, rss = (statistics.median(each.rss for each in found) for found in (alone, all_of_it))
    base_user, user = (
        statistics.median(each.user for each in found) for found in (alone, all_of_it)
    )
    wanted = f" (target {CPU_TARGET[service]})" if service in CPU_TARGET else ""
    print(f"{service}: imports, medians of {ROUNDS} rounds")
    print(
        f"  user CPU {user * 1e3:.0f} ms, its libraries {base_user * 1e3:.0f} ms:"
        f" ratio {ratio:.2f}{wanted}"
    )
    print(f"  RSS {(rss - base_rss) / MB:.1f} MB above its libraries ({base_rss / MB:.0f} MB)")


def _as_in_the_image(program: Program) -> Program:
    if program.name == "emulator":
        return program
    ours = {k: v for k, v in program.environment.items() if k.startswith(("ROOST_", "FLY_"))}
    # `make up` has an image for its first start. The service's own default has none.
    ours.pop("ROOST_DEFAULT_IMAGE", None)
    return replace(
        program,
        command=run_time_site.command(*program.command[1:]),
        environment={**run_time_site.environment(SITE), **ours},
    )


async def _rest(floors: dict[str, float]) -> None:
    settings = replace(StackSettings.on_free_ports(DATA), fresh=True)
    async with Stack(settings, rewire=_as_in_the_image) as stack:
        # Most starts find a migrated database.
        await stack.stop("session_service")
        await stack.start("session_service")
        await asyncio.sleep(SETTLE)
        processes = {name: psutil.Process(stack.pid(name)) for name in floors}
        rss = {name: process.memory_info().rss for name, process in processes.items()}
        before = {name: _cpu(process) for name, process in processes.items()}
        await asyncio.sleep(IDLE)
        for name, process in processes.items():
            used = (_cpu(process) - before[name]) / IDLE
            later = process.memory_info().rss
            print(
                f"{name}: serving, without calls\n"
                f"  RSS {(rss[name] - floors[name]) / MB:.1f} MB above its libraries after"
                f" {SETTLE:g} s (target {MEMORY_TARGET[name]:g}),"
                f" {(later - floors[name]) / MB:.1f} MB after {SETTLE + IDLE:g} s;"
                f" {process.num_threads()} threads\n"
                f"  idle CPU {used:.2%} of a core over {IDLE:g} s (target {IDLE_TARGET:.2%})"
            )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
