"""`python -m local demo`: status 0 only if every value is as expected, and no process left."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
import pytest

from local.demo.policy_scenarios import SCENARIOS, SUSPENDED, PolicyScenarios
from local.demo.policy_steps import PolicySteps, promised_count
from local.demo.preview import Previews
from local.demo.report import Line, Report, table
from local.demo.session_client import SessionClient
from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.container.v1.container_service_pb2 import ContainerSpec
from roost.session.v1 import session_pb2 as pb
from tests.open_processes import using

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: The lines of the final table, without the padding of the columns.
TABLE = """\
REUSE | (no stop) | REUSED, MEMORY, verified | 2
REUSE | ENDED | CREATED, NONE, verified | 0
HIBERNATE | PAUSED: machine suspended with its memory | RESUMED, MEMORY, verified | 2
CHECKPOINT | PAUSED: state saved, no machine | RESTORED, CHECKPOINT, verified | 2
ASK | PAUSED: machine suspended with its memory | asked, CONTINUE: RESUMED, MEMORY, verified | 2
ASK | PAUSED: machine suspended with its memory | asked, FRESH: CREATED, NONE, verified | 0
EPHEMERAL | (no stop) | CREATED, NONE, verified | 0
EPHEMERAL | ENDED | CREATED, NONE, verified | 0
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
    """The lines of the table below its header, with single blanks."""
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
    assert "error: CHOICE_TOKEN_USED" in output
    assert not using(tmp_path)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_dropped_snapshot_is_reported(tmp_path: Path) -> None:
    status, output = await demo("--data", str(tmp_path), "--fault", "snapshot_dropped")
    assert status == 1, output
    assert "counter: expected 2, got 0" in output
    assert "continuity: expected MEMORY, got" in output
    assert rows_of(output) == TABLE.splitlines(), (
        "the fault fires once, before the policy scenarios"
    )
    assert not using(tmp_path)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack of its own, on free ports."""
    async with Stack(replace(StackSettings.on_free_ports(tmp_path), durable=False)) as running:
        yield running


@dataclass(frozen=True)
class Played:
    """The result of one policy's scenario."""

    table: list[str]
    wrong: list[str]
    """Without the rows' numbers."""


async def played(stack: Stack, policy: str) -> Played:
    """Play one policy's scenario against a running stack."""
    report = Report(io.StringIO())
    with grpc.insecure_channel(stack.session_targets[0]) as channel:
        async with Previews() as previews:
            demo = PolicyScenarios(stack, SessionClient(channel), previews, report)
            await demo.play_one(policy)
            demo.show_table()
    assert isinstance(report.out, io.StringIO)
    wrong = [text.partition("  ")[2] for text in report.wrong]
    return Played(rows_of(report.out.getvalue()), wrong)


async def counter_clicked_by_another_client(stack: Stack) -> list[str]:
    """The report of a counter that is as expected but contradicts the reply's continuity."""
    report = Report(io.StringIO())
    with grpc.insecure_channel(stack.session_targets[0]) as channel:
        async with Previews() as previews:
            steps = PolicySteps("REUSE", stack, SessionClient(channel), previews, report)
            await steps.set_policy(ContainerSpec(image="roost/counter"))
            session = await steps.begin()
            await previews.get(session, "/click")
            await steps.start("REUSED", "MEMORY", counter=3)
    return [text.partition("  ")[2] for text in report.wrong]


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_state_that_a_policy_lost_is_reported(stack: Stack) -> None:
    """Lost memory is a wrong counter; a failed stop aborts that policy's scenario."""
    await stack.admin.set_fault("snapshot_dropped")
    lost = await played(stack, "HIBERNATE")
    assert lost.table == [f"HIBERNATE | {SUSPENDED} | RESTARTED, FILESYSTEM, verified | 0"]
    assert lost.wrong == [
        "StartSession: outcome: expected RESUMED, got RESTARTED",
        "StartSession: continuity: expected MEMORY, got FILESYSTEM",
        "GET / of the preview: counter: expected 2, got 0",
    ]
    await stack.admin.set_fault("suspend_fails")
    awake = await played(stack, "ASK")
    assert awake.table == ["ASK | (aborted) | |"]
    (wrong,) = awake.wrong
    assert wrong.startswith("StopSession: answer: expected no error, got SUSPEND_FAILED"), wrong
    assert await counter_clicked_by_another_client(stack) == [
        "GET / of the preview: counter according to the reply: expected 2, got 3"
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
def test_the_count_that_a_continuity_promises(
    continuity: pb.Continuity.ValueType, in_memory: int, in_file: int
) -> None:
    assert promised_count(continuity, 2, in_file=False) == in_memory
    assert promised_count(continuity, 2, in_file=True) == in_file


def test_every_policy_has_a_scenario() -> None:
    names = {pb.Policy.Persistence.Name(number) for number in pb.Policy.Persistence.values()}
    played = {f"PERSISTENCE_{policy}" for policy in SCENARIOS}
    assert played == names - {"PERSISTENCE_UNSPECIFIED"}


def test_the_table_is_as_wide_as_its_texts() -> None:
    lines = [Line("REUSE", "ENDED", "CREATED", "0"), Line("ASK", "(no stop)", "REUSED", "2")]
    assert table(lines) == [
        "policy | after StopSession | answer of StartSession | counter",
        "-------+-------------------+------------------------+--------",
        "REUSE  | ENDED             | CREATED                | 0",
        "ASK    | (no stop)         | REUSED                 | 2",
    ]


async def test_an_unknown_fault_is_rejected() -> None:
    status, output = await demo("--fault", "bad_weather")
    assert status == 2
    assert "invalid choice: 'bad_weather'" in output


def test_the_report_counts_and_lists_wrong_values() -> None:
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
        "1 of 2 values were not as expected:",
        "  2  GET /: counter: expected 2, got 0",
    ]
