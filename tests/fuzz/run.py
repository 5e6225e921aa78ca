"""A run of many requests against a whole stack, and what it may cost."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING

import grpc
import psutil

from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.session.v1 import session_pb2, session_service_pb2
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.contracts import CONTAINERS, SESSIONS
from tests.fuzz.requests import Fuzzer
from tests.fuzz.sending import Outcome, Sender, send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.fuzz.requests import Method

NAMES = ("session_service", "container_service")
#: An image that no registry has: no request of the run starts a program.
NO_IMAGE = "roost/none"
AT_ONCE = 32
#: How often the memory is read in a run.
READINGS = 20
#: By how much a process may grow in the second half of a run, in bytes. Heaps breathe.
GROWTH = 24 * 1024 * 1024
#: How many lines of log a request may cost, the loops of the services included.
LINES_A_REQUEST = 1.1
LOUD = re.compile(r"^Traceback|\b(ERROR|CRITICAL)\b|never retrieved")


@dataclass
class Log:
    """What a service wrote during a run."""

    size: int = 0
    lines: int = 0
    loud: list[str] = field(default_factory=list)
    """The first lines that would wake somebody, or begin a traceback."""


@dataclass
class Result:
    """A run."""

    seed: int
    count: int
    outcome: Outcome
    seconds: float = 0.0
    memory: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in NAMES})
    """The resident memory of each service, in bytes: at the start, and READINGS times."""
    logs: dict[str, Log] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """What must not be, a line each; empty for a good run."""
        found = list(self.outcome.wrong)
        if self.outcome.count != self.count:
            found.append(f"{self.outcome.count} of {self.count} requests were answered")
        for name, log in self.logs.items():
            found += [f"{name} logged: {line}" for line in log.loud]
            if log.lines > LINES_A_REQUEST * self.count:
                found.append(f"{name} logged {log.lines} lines for {self.count} requests")
        for name, readings in self.memory.items():
            half = readings[len(readings) // 2]
            if readings[-1] > half + GROWTH:
                found.append(f"{name} grew from {half} to {readings[-1]} bytes in the second half")
        return found

    def report(self) -> str:
        """The figures, for people."""
        rate = self.count / self.seconds
        lines = [f"seed {self.seed}: {self.count} requests in {self.seconds:.0f} s ({rate:.0f}/s)"]
        for code, count in self.outcome.codes.most_common():
            lines.append(f"  {code:<20} {count:>9}")
        for name, log in self.logs.items():
            size = f"{log.size / 1e6:.1f} MB, {log.size / self.count:.0f} bytes a request"
            lines.append(f"  {name}: {log.lines} lines of log, {size}")
        for name, readings in self.memory.items():
            first, half, last = (
                round(bytes_ / 2**20)
                for bytes_ in (readings[0], readings[len(readings) // 2], readings[-1])
            )
            lines.append(f"  {name}: RSS {first} MiB, half-way {half}, at the end {last}")
        lines += [f"  fault: {fault}" for fault in self.faults()]
        return "\n".join(lines)


async def run(seed: int, count: int, data: Path, say: Callable[[str], None]) -> Result:
    """Send `count` requests to every method of both services, in a stack of its own in `data`. Says
    now and then how far it is.
    """
    settings = replace(StackSettings.on_free_ports(data), durable=False)
    settings = replace(settings, environment={"ROOST_DEFAULT_IMAGE": NO_IMAGE})
    async with AsyncExitStack() as opened:
        stack = await opened.enter_async_context(Stack(settings))
        channels: dict[str, grpc.aio.Channel] = {}
        for services, target in (
            (SESSIONS, stack.session_targets[0]),
            (CONTAINERS, stack.container_target),
        ):
            channel = await opened.enter_async_context(grpc.aio.insecure_channel(target))
            channels |= {service.full_name: channel for service in services}
        session_id = await _session(channels[SESSIONS[0].full_name])
        fuzzer = Fuzzer(seed, _methods((*SESSIONS, *CONTAINERS)), [session_id])
        sender = Sender(channels)
        result = Result(seed, count, sender.outcome)
        processes = {name: psutil.Process(stack.pid(name)) for name in NAMES}
        step = max(1, count // READINGS)

        told = 0

        def watch(number: int) -> None:
            nonlocal told
            for line in sender.outcome.wrong[told:]:
                say(f"  wrong: {line}")
                told += 1
            if number % step == 0:
                for name, process in processes.items():
                    result.memory[name].append(process.memory_info().rss)
                sizes = [result.memory[name][-1] // 2**20 for name in NAMES]
                say(f"  {number} sent, RSS {sizes} MiB, {dict(sender.outcome.codes)}")

        before = {name: _size(stack.logs, name) for name in NAMES}
        began = monotonic()
        await send_all(fuzzer, sender, count, AT_ONCE, watch)
        result.seconds = monotonic() - began
        watch(count // step * step)
        result.logs = {
            name: await asyncio.to_thread(_read, stack.logs / f"{name}.log", before[name])
            for name in NAMES
        }
    return result


def _methods(services: Iterable[Method]) -> list[Method]:
    return [method for service in services for method in service.methods]


async def _session(channel: grpc.aio.Channel) -> str:
    """A session with a real container, which valid requests change."""
    request = session_service_pb2.StartSessionRequest(
        key=session_pb2.SessionKey(project_id="real", user_id="wren")
    )
    request.spec.image = "roost/counter"
    answer = await SessionServiceStub(channel).StartSession(request, timeout=60)
    session_id: str = answer.session.session_id
    return session_id


def _size(logs: Path, name: str) -> int:
    return (logs / f"{name}.log").stat().st_size


def _read(path: Path, after: int) -> Log:
    """Judge what was written after this offset, line by line: it may be hundreds of megabytes."""
    log = Log()
    with path.open(errors="replace") as file:
        file.seek(after)
        for line in file:
            log.lines += 1
            log.size += len(line.encode())
            if LOUD.search(line) and len(log.loud) < 20:
                log.loud.append(line.rstrip()[:500])
    return log
