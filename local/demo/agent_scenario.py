"""The demo's third scenario: one process begins a conversation, another continues it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local.demo.report import Report
    from local.stack.stack import Stack

FIRST, SECOND = "What do we build first?", "And what comes next?"
FIRST_TOKENS, SECOND_TOKENS = 793, 207
SECONDS = 30.0


class ProcessFailed(Exception):
    """The agent process ended with an error; the message is its last line of output."""


@dataclass(frozen=True)
class Conversation:
    """The output of an agent process, and the milliseconds that it took, including its start."""

    session_id: str
    turn: int
    tokens: int
    messages: list[str]
    milliseconds: float


class AgentScenario:
    """Plays the scenario against a running stack."""

    def __init__(self, stack: Stack, report: Report) -> None:
        self._stack = stack
        self._report = report

    async def play(self) -> None:
        """Process 1 appends; session_service is killed; process 2 appends to the same id."""
        self._report.say("")
        self._report.say("An agent's conversation, begun in one process and continued in another.")
        try:
            await self._scenario()
        except ProcessFailed as failed:
            self._report.row("(agent process)", str(failed), 0, {"answer": ("none", str(failed))})

    async def _scenario(self) -> None:
        one = await self._run_process("--say", FIRST, "--tokens", str(FIRST_TOKENS))
        self._row("process 1 creates, appends, ends", one, 1, FIRST_TOKENS, [FIRST])
        await self._kill_and_restart()
        two = await self._run_process(
            *("--session", one.session_id, "--say", SECOND, "--tokens", str(SECOND_TOKENS))
        )
        total = FIRST_TOKENS + SECOND_TOKENS
        self._row("process 2 appends to the same id", two, 2, total, [FIRST, SECOND])

    def _row(
        self, call: str, came: Conversation, turn: int, tokens: int, messages: list[str]
    ) -> None:
        answer = f"session={came.session_id},turn={came.turn},tokens={came.tokens}"
        self._report.row(
            call,
            answer,
            came.milliseconds,
            {
                "turn": (turn, came.turn),
                "tokens": (tokens, came.tokens),
                "messages": (messages, came.messages),
            },
        )

    async def _kill_and_restart(self) -> None:
        began = time.monotonic()
        await self._stack.kill("session_service")
        await self._stack.start("session_service")
        spent = 1000 * (time.monotonic() - began)
        self._report.row("kill -9 session_service, start it again", "it is serving", spent, {})

    async def _run_process(self, *arguments: str) -> Conversation:
        """Run the agent process to its end. Raises ProcessFailed."""
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "local.demo.agent_process", self._stack.session_targets[0]),
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise ProcessFailed(err.decode().strip().rpartition("\n")[2])
        spent = 1000 * (time.monotonic() - began)
        return Conversation(**json.loads(out), milliseconds=spent)
