"""An inventory pass over 100,000 machines: how long both event loops stand still, and the memory.

The provider is a process that sends one JSON list, as Fly does. container_service and
session_service are processes of their own, with a probe in their event loops. A load of REUSED
starts runs beside the pass, and before it for comparison.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import shutil
import sys
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from bench.starts import seed
from container_service.config import Config as ContainerConfig
from container_service.main import fast_loop
from container_service.main import serve as serve_containers
from local.postgres.server import EmbeddedPostgres
from session_service.config import Config
from session_service.server.replica import serve
from session_service.storage.installation import read
from session_service.storage.migrate import upgrade

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

DATA = Path(".roost/bench-large-sweep")
MACHINES = int(os.environ.get("ROOST_BENCH_MACHINES", "100000"))
APP = "roost-local"
#: How long the load runs without a pass, in s.
QUIET_SECONDS = 5.0
#: Targets: the longest stall of an event loop in s, and the growth of a process in bytes.
STALL, GROWTH = 0.020, 60_000_000
PREPARE = """
UPDATE containers SET app = 'roost-local', container_id = 'm' || right(name, 7),
    name = 'roost-' || session_id || '-1', create_time = now() - interval '2 days';
UPDATE sessions SET change_time = now() - interval '1 day', create_time = now() - interval '2 days';
VACUUM ANALYZE sessions;
VACUUM ANALYZE containers
"""


class Probe:
    """How long the event loop is at work without running a timer of 1 ms, and how much the process
    grows. `late` is in time of the clock, which grows with whatever else the machine does; `stall`
    is in CPU time of the loop's thread, which does not.
    """

    def __init__(self) -> None:
        self.begin()
        self._task = asyncio.create_task(self._run())

    def begin(self) -> None:
        """Measure from now on."""
        self.late: list[float] = []
        self.busy: list[float] = []
        self.before = psutil.Process().memory_info().rss
        # The kernel's high-water mark begins anew.
        Path("/proc/self/clear_refs").write_text("5")

    def result(self) -> dict[str, float]:
        """The longest stall and lateness in s, and the stall's 99.9th percentile; the growth in
        bytes.
        """
        busy = sorted(self.busy) or [0.0]
        peak = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return {
            "stall": busy[-1],
            "p999": busy[len(busy) * 999 // 1000],
            "late": max(self.late, default=0.0),
            "growth": max(0, peak - self.before),
            "cpu": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, worked = loop.time(), thread_time()
            await asyncio.sleep(0.001)
            self.late.append(loop.time() - began - 0.001)
            self.busy.append(thread_time() - worked)


def machine(number: int, installation: str) -> bytes:
    """A machine of a session, as Fly lists it."""
    session_id = f"{number:032x}"
    session_id = "-".join(
        (session_id[:8], session_id[8:12], session_id[12:16], session_id[16:20], session_id[20:])
    )
    events = [
        {"id": f"01{number:010d}{each}", "type": kind, "status": "started", "source": "flyd",
         "timestamp": 1_780_000_000_000 + each}
        for each, kind in enumerate(("launch", "start", "suspend", "start"))
    ]  # fmt: skip
    labels = {
        "roost_installation": installation,
        "roost_session": session_id,
        "roost_generation": "1",
        "roost_spec_hash": f"{number:064x}",
    }
    shown = {
        "id": f"m{number:07d}", "name": f"roost-{session_id}-1", "state": "started",
        "region": "iad", "instance_id": f"01HXXX{number:020d}", "version": f"01HXXX{number:020d}",
        "private_ip": "fdaa:0:18:a7b:196:e274:9ce1:2",
        "image_ref": {"registry": "registry-1.docker.io", "repository": "roost/counter",
                      "tag": "latest", "digest": f"sha256:{number:064x}"},
        "config": {"image": "roost/counter", "env": {"COLUMNS": "80"}, "metadata": labels,
                   "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
                   "services": [{"internal_port": 8080, "protocol": "tcp", "autostart": True,
                                 "ports": [{"port": 80, "handlers": ["http"]}]}],
                   "restart": {"policy": "no"}},
        "created_at": "2026-11-20T10:00:00Z", "updated_at": "2026-11-20T10:00:00Z",
        "cordoned": False, "events": events, "checks": [], "host_status": "ok",
    }  # fmt: skip
    return json.dumps(shown).encode()


async def provider(installation: str, count: int) -> None:
    """Serve the list of machines to every request, in chunks; print the port."""
    body = b"[" + b",".join(machine(each + 1, installation) for each in range(count)) + b"]"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while asked := await reader.readuntil(b"\r\n\r\n"):
                sent = body if b"/machines" in asked.splitlines()[0] else b"{}"
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(sent)}\r\n\r\n"
                writer.write(head.encode())
                for begin in range(0, len(sent), 65_536):
                    writer.write(sent[begin : begin + 65_536])
                    await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    say(port=server.sockets[0].getsockname()[1], bytes=len(body))
    await server.serve_forever()


async def containers(url: str) -> None:
    """Run container_service over the provider; answer each line of input with the probe."""
    config = ContainerConfig(
        fly_token="bench",
        url_template="http://{container_id}.localhost",
        listen="127.0.0.1:0",
        fly_base_url=url,
        fly_app=APP,
    )
    gc.freeze()  # as __main__ does
    async with serve_containers(config) as running:
        probe = Probe()
        say(target=running.target)
        async for line in lines():
            if line == "begin":
                probe.begin()
            say(**probe.result())


async def sessions(database_url: str, target: str) -> None:
    """Run session_service; on `sweep` make a pass, and print what the probe saw."""
    config = Config(
        database_url=database_url,
        container_target=target,
        listen="127.0.0.1:0",
        app=APP,
        sweep="off",
        sweep_interval=timedelta(days=1),
    )
    gc.freeze()  # as cli.commands does
    async with serve(config) as running:
        probe = Probe()
        say(target=running.target)
        async for line in lines():
            if line == "begin":
                probe.begin()
                say(**probe.result())
                continue
            if line == "sweep":
                began = monotonic()
                swept = await running.background.inventory_pass.act(APP)
                verdicts = {str(name): number for name, number in swept.verdicts.items()}
                say(seconds=monotonic() - began, listed=swept.listed, verdicts=verdicts,
                    orphans=len(swept.orphans), **probe.result())  # fmt: skip
            else:
                say(**probe.result())


async def lines() -> AsyncGenerator[str]:
    """The lines of the input."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


def say(**values: Any) -> None:
    """Print a line of JSON. Any: what JSON takes."""
    print(json.dumps(values), flush=True)


@asynccontextmanager
async def child(*arguments: str) -> AsyncGenerator[tuple[Process, dict[str, Any]]]:
    """A process of this module, and its first line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.large_sweep", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process, await said(process)
    finally:
        process.kill()
        await process.wait()


async def said(process: Process, order: str = "") -> dict[str, Any]:
    """The next line of the process, after an order."""
    assert process.stdin is not None
    assert process.stdout is not None
    if order:
        process.stdin.write(f"{order}\n".encode())
        await process.stdin.drain()
    found: dict[str, Any] = json.loads(await process.stdout.readline())
    return found


async def load(target: str, seconds: float) -> dict[str, float]:
    """REUSED starts for so long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load", target, "start", "--window", "2"),
        *("--seconds", str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    found: dict[str, float] = json.loads(out)
    return found


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    async with EmbeddedPostgres(DATA, 0, durable=False) as server:
        await server.ensure_database("sweep")
        url = server.url("sweep")
        await asyncio.to_thread(upgrade, url)
        await seed(url, MACHINES)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("UPDATE containers SET name = n FROM (SELECT session_id AS s, "
                "lpad((row_number() OVER (ORDER BY session_id))::text, 7, '0') AS n FROM containers"
                ") AS x WHERE s = session_id")  # fmt: skip
            for statement in PREPARE.split(";"):
                await connection.execute(statement.encode())
        await _measure(url)


async def _measure(url: str) -> None:
    from session_service.storage.database import Database

    async with Database(url, max_size=2) as database:
        installation = str((await read(database)).installation_id)
    async with (
        child("provider", installation, str(MACHINES)) as (_, listed),
        child("containers", f"http://127.0.0.1:{listed['port']}") as (below, served),
        child("sessions", url, served["target"]) as (above, replica),
    ):
        print(f"{MACHINES} machines, a list of {listed['bytes'] / 1e6:.0f} MB")
        await load(replica["target"], 3.0)
        await said(above, "begin")
        quiet = await load(replica["target"], QUIET_SECONDS)
        resting = await said(above, "result")
        _print("session_service without a pass", resting)
        for number in (1, 2):
            await said(above, "begin")
            await said(below, "begin")
            loading = asyncio.create_task(load(replica["target"], QUIET_SECONDS))
            swept = await said(above, "sweep")
            busy = await loading
            print(f"pass {number}: {swept['seconds']:.1f} s, {swept['listed']} listed, "
                  f"{swept['verdicts']}, {swept['orphans']} orphans")  # fmt: skip
            _print("session_service", swept)
            _print("container_service", await said(below, "result"))
            for name in ("p50", "p99"):
                print(f"  REUSED {name}: {quiet[name] * 1e3:.1f} ms without a pass, "
                      f"{busy[name] * 1e3:.1f} ms beside one")  # fmt: skip


def _print(name: str, found: dict[str, Any]) -> None:
    print(
        f"  {name}: event loop at work for at most {found['stall'] * 1e3:.1f} ms at once "
        f"(target {STALL * 1e3:.0f}), p99.9 {found['p999'] * 1e3:.1f} ms, "
        f"late by at most {found['late'] * 1e3:.0f} ms; "
        f"+{found['growth'] / 1e6:.0f} MB (target {GROWTH / 1e6:.0f})"
    )


ROLES = {
    "provider": lambda given: provider(given[0], int(given[1])),
    "containers": lambda given: containers(given[0]),
    "sessions": lambda given: sessions(given[0], given[1]),
}

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(ROLES[sys.argv[1]](sys.argv[2:]) if len(sys.argv) > 1 else run())
