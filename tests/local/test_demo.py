"""`python -m local demo`: 0 only if every value was as told, and no process left either way."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
import pytest

from local.client import SessionClient
from local.policy_demo import STORIES, PolicyDemo
from local.policy_steps import PolicySteps, promised_count
from local.policy_table import Line, table
from local.preview import Previews
from local.report import Report
from local.stack import Stack
from local.stack_settings import StackSettings
from roost.container.v1.container_service_pb2 import ContainerSpec
from roost.session.v1 import session_pb2 as pb
from tests.processes import using

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: What the table at the end says, with the columns' padding taken away.
TABLE = """\
REUSE | (no stop) | REUSED, MEMORY, proved | 2
REUSE | ENDED | CREATED, NONE, proved | 0
HIBERNATE | PAUSED: machine frozen with its memory | RESUMED, MEMORY, proved | 2
CHECKPOINT | PAUSED: state saved, no machine | RESTORED, CHECKPOINT, proved | 2
ASK | PAUSED: machine frozen with its memory | asked, CONTINUE: RESUMED, MEMORY, proved | 2
ASK | PAUSED: machine frozen with its memory | asked, FRESH: CREATED, NONE, proved | 0
EPHEMERAL | (no stop) | CREATED, NONE, proved | 0
EPHEMERAL | ENDED | CREATED, NONE, proved | 0
"""


async def demo(*arguments: str) -> tuple[int, str]:
    """The command's status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local", "demo", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 110)
    assert process.returncode is not None
    return process.returncode, output.decode()


def rows_of(output: str) -> list[str]:
    """The lines of the table below its head, with single blanks."""
    lines = output.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("policy "))
    return [" ".join(line.split()) for line in lines[head + 2 :] if " | " in line]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_counter_is_still_2_or_what_the_policy_says(tmp_path: Path) -> None:
    status, output = await demo("--data", str(tmp_path))
    assert status == 0, output
    assert "WRONG" not in output
    assert output.splitlines()[-1].startswith("All ")
    assert rows_of(output) == TABLE.splitlines()
    assert "CHOICE_REQUIRED: CONTINUE (MEMORY), FRESH (NONE)" in output
    assert "refused: CHOICE_TOKEN_USED" in output
    assert not using(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_dropped_snapshot_is_seen_and_told(tmp_path: Path) -> None:
    status, output = await demo("--data", str(tmp_path), "--fault", "snapshot_dropped")
    assert status == 1, output
    assert "counter: expected 2, got 0" in output
    assert "continuity: expected MEMORY, got" in output
    assert rows_of(output) == TABLE.splitlines(), "it strikes once, before the policies' turn"
    assert not using(tmp_path)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack of its own, on free ports."""
    async with Stack(replace(StackSettings.on_free_ports(tmp_path), durable=False)) as running:
        yield running


@dataclass(frozen=True)
class Played:
    """What came of a policy's story."""

    table: list[str]
    wrong: list[str]
    """Without the rows' numbers."""


async def played(stack: Stack, policy: str) -> Played:
    """One policy's story, against a running stack."""
    report = Report(io.StringIO())
    with grpc.insecure_channel(stack.session_targets[0]) as channel:
        async with Previews(stack.proxy_url) as previews:
            demo = PolicyDemo(stack, SessionClient(channel), previews, report)
            await demo.play_one(policy)
            demo.show_table()
    assert isinstance(report.out, io.StringIO)
    wrong = [text.partition("  ")[2] for text in report.wrong]
    return Played(rows_of(report.out.getvalue()), wrong)


async def clicked_behind_its_back(stack: Stack) -> list[str]:
    """What is told of a counter that shows what was expected, and not what the reply says."""
    report = Report(io.StringIO())
    with grpc.insecure_channel(stack.session_targets[0]) as channel:
        async with Previews(stack.proxy_url) as previews:
            steps = PolicySteps("REUSE", stack, SessionClient(channel), previews, report)
            await steps.set_policy(ContainerSpec(image="roost/counter"))
            session = await steps.begin()
            await previews.get(session, "/click")
            await steps.start("REUSED", "MEMORY", counter=3)
    return [text.partition("  ")[2] for text in report.wrong]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_what_a_policy_did_not_keep_is_told(stack: Stack) -> None:
    """Memory that was dropped is a wrong counter; a stop that failed ends that policy's story."""
    await stack.admin.set_fault("snapshot_dropped")
    lost = await played(stack, "HIBERNATE")
    assert lost.table == [
        "HIBERNATE | PAUSED: machine frozen with its memory | RESTARTED, FILESYSTEM, proved | 0"
    ]
    assert lost.wrong == [
        "StartSession: outcome: expected RESUMED, got RESTARTED",
        "StartSession: continuity: expected MEMORY, got FILESYSTEM",
        "GET / of the preview: counter: expected 2, got 0",
    ]
    await stack.admin.set_fault("suspend_fails")
    awake = await played(stack, "ASK")
    assert awake.table == ["ASK | (not played to its end) | |"]
    (wrong,) = awake.wrong
    assert wrong.startswith("StopSession: answer: expected no error, got SUSPEND_FAILED"), wrong
    assert await clicked_behind_its_back(stack) == [
        "GET / of the preview: counter, going by the reply: expected 2, got 3"
    ]


@pytest.mark.parametrize(
    ("continuity", "in_memory", "in_file"),
    [
        (pb.CONTINUITY_MEMORY, 2, 2),
        (pb.CONTINUITY_FILESYSTEM, 0, 2),
        (pb.CONTINUITY_CHECKPOINT, 2, 2),
        (pb.CONTINUITY_NONE, 0, 0),
        (pb.CONTINUITY_UNSPECIFIED, 0, 0),
    ],
)
def test_what_the_reply_says_of_a_counter_that_was_at_2(
    continuity: pb.Continuity.ValueType, in_memory: int, in_file: int
) -> None:
    assert promised_count(continuity, 2, in_file=False) == in_memory
    assert promised_count(continuity, 2, in_file=True) == in_file


def test_every_policy_has_a_story() -> None:
    names = {pb.Policy.Persistence.Name(number) for number in pb.Policy.Persistence.values()}
    told = {f"PERSISTENCE_{policy}" for policy in STORIES}
    assert told == names - {"PERSISTENCE_UNSPECIFIED"}


def test_the_table_is_as_wide_as_its_texts() -> None:
    lines = [Line("REUSE", "ENDED", "CREATED", "0"), Line("ASK", "(no stop)", "REUSED", "2")]
    assert table(lines) == [
        "policy | stop meant | start said | counter",
        "-------+------------+------------+--------",
        "REUSE  | ENDED      | CREATED    | 0",
        "ASK    | (no stop)  | REUSED     | 2",
    ]


async def test_a_fault_that_is_none_is_refused() -> None:
    status, output = await demo("--fault", "bad_weather")
    assert status == 2
    assert "invalid choice: 'bad_weather'" in output


def test_the_report_counts_and_tells_what_was_wrong() -> None:
    out = io.StringIO()
    report = Report(out)
    report.row("StartSession", "RESUMED", 12.3, {"outcome": ("RESUMED", "RESUMED")})
    report.row("GET /", "counter 0", 4.5, {"counter": ("2", "0")})
    report.summarise()
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["1", "StartSession", "RESUMED", "12", "ms", "ok"]
    assert lines[1].endswith("ms  WRONG")
    assert lines[2].strip() == "counter: expected 2, got 0"
    assert lines[-2:] == [
        "1 of 2 values were not as told:",
        "  2  GET /: counter: expected 2, got 0",
    ]
