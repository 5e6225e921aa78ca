"""`python -m local demo`: the main job on real parts, every answer shown and checked."""

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

from local.agent_demo import AgentDemo
from local.client import SessionClient
from local.demo_script import Demo
from local.fly.faults import KINDS
from local.policy_demo import PolicyDemo
from local.preview import Previews
from local.report import Report
from local.signals import stop_requested
from local.stack import Stack, StackFailed
from local.stack_settings import StackSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


def main(argv: list[str]) -> int:
    """Status 0 only if every value was as told; 1 if one was not; 2 if the stack cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m local demo",
        description="Start, click twice, stop, start again: the counter is still 2, or what the"
        " project's policy says. Runs a stack of its own on free ports, shows each call with its"
        " real answer, and checks every value.",
    )
    parser.add_argument("--data", type=Path, default=Path(".roost/demo"), metavar="DIR")
    parser.add_argument(
        "--fault",
        choices=KINDS,
        metavar="KIND",
        help=f"what the emulator shall do wrong, once: {', '.join(KINDS)}",
    )
    arguments = parser.parse_args(argv)
    try:
        return asyncio.run(run(arguments.data, arguments.fault))
    except StackFailed as failure:
        print(failure, file=sys.stderr)
        return failure.status


async def run(data: Path, fault: str | None) -> int:
    """Show the demo, unless Ctrl-C comes first; then 130, as shells have it."""
    async with stop_requested() as stop:
        showing = asyncio.create_task(_show(data, fault), name="demo")
        asked = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({showing, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not showing.done():
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            return 130
        return showing.result()


async def _show(data: Path, fault: str | None) -> int:
    report = Report(sys.stdout)
    settings = replace(StackSettings.on_free_ports(data), fresh=True)
    report.say("Starting PostgreSQL, the Fly emulator, container_service and session_service.")
    began = time.monotonic()
    async with (
        Stack(settings) as stack,
        _client(stack) as client,
        Previews(stack.proxy_url) as previews,
    ):
        report.say(f"All four serve after {time.monotonic() - began:.1f} s. Logs: {stack.logs}/")
        if fault:
            await stack.admin.set_fault(fault)
            report.say(f"Fault switched on, once: {fault}: {KINDS[fault]}.")
        report.say("")
        await Demo(stack, client, previews, report).play()
        policies = PolicyDemo(stack, client, previews, report)
        await policies.play()
        await AgentDemo(stack, report).play()
    policies.show_table()
    report.summarise()
    return 1 if report.wrong else 0


@contextlib.asynccontextmanager
async def _client(stack: Stack) -> AsyncGenerator[SessionClient]:
    """A client that gives up when the demo does: closing the channel ends a call in flight."""
    # As every client of a service that may be away for a moment: knock again soon.
    options = (("grpc.max_reconnect_backoff_ms", 500),)
    with grpc.insecure_channel(stack.session_targets[0], options=options) as channel:
        yield SessionClient(channel)
