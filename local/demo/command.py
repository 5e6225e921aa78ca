"""`python -m local demo`: play the scenarios on a real stack; show and check every answer."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from local.demo.agent_scenario import AgentScenario
from local.demo.policy_scenarios import PolicyScenarios
from local.demo.preview import Previews
from local.demo.report import Report
from local.demo.session_client import SessionClient
from local.demo.session_scenario import SessionScenario
from local.fly.faults import KINDS
from local.processes.stop_signals import stop_requested
from local.stack.stack import Stack, StackFailed
from local.stack.stack_settings import StackSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


def main(argv: list[str]) -> int:
    """Status 0: every value was as expected; 1: one was not; 2: the stack cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m local demo",
        description="Start a session, click its counter twice, stop it and start it again: the"
        " counter is 2, or what the project's policy says. The demo runs a stack of its own on free"
        " ports, prints each call with its real answer, and checks every value.",
    )
    parser.add_argument("--data", type=Path, default=Path(".roost/demo"), metavar="DIR")
    parser.add_argument(
        "--fault",
        choices=KINDS,
        metavar="KIND",
        help=f"let the emulator inject this fault once: {', '.join(KINDS)}",
    )
    arguments = parser.parse_args(argv)
    try:
        return asyncio.run(run(arguments.data, arguments.fault))
    except StackFailed as failure:
        print(failure, file=sys.stderr)
        return failure.status


async def run(data: Path, fault: str | None) -> int:
    """Play the demo. Ctrl-C ends it with status 130, as in shells."""
    async with stop_requested() as stop:
        playing = asyncio.create_task(_play(data, fault), name="demo")
        asked = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({playing, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not playing.done():
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing
            return 130
        return playing.result()


async def _play(data: Path, fault: str | None) -> int:
    report = Report(sys.stdout)
    settings = replace(StackSettings.on_free_ports(data), fresh=True)
    report.say("Starting PostgreSQL, the Fly emulator, container_service and session_service ...")
    began = time.monotonic()
    async with (
        Stack(settings) as stack,
        _client(stack) as client,
        Previews() as previews,
    ):
        report.say(
            f"All four are ready after {time.monotonic() - began:.1f} s. Logs: {stack.logs}/"
        )
        if fault:
            await stack.admin.set_fault(fault)
            report.say(f"The emulator will inject one fault: {fault}: {KINDS[fault]}.")
        report.say("")
        await SessionScenario(stack, client, previews, report).play()
        policies = PolicyScenarios(stack, client, previews, report)
        await policies.play()
        await AgentScenario(stack, report).play()
    policies.show_table()
    report.summarise()
    return 1 if report.wrong else 0


@contextlib.asynccontextmanager
async def _client(stack: Stack) -> AsyncGenerator[SessionClient]:
    """A client whose channel is closed when the demo ends, which ends a call in progress."""
    # The demo kills the service: reconnect soon after a refused connection.
    options = (("grpc.max_reconnect_backoff_ms", 500),)
    with grpc.insecure_channel(stack.session_targets[0], options=options) as channel:
        yield SessionClient(channel)
