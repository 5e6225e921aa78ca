"""Failpoints: which values arm one, and that every call to the provider has one."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys

import pytest

from session_service import failpoints, ports
from tests.open_processes import ended

NOWHERE = "postgresql://roost@127.0.0.1:9/roost"


def test_every_call_to_the_provider_has_a_failpoint() -> None:
    methods = {name for name, _ in inspect.getmembers(ports.Containers, inspect.isfunction)}
    assert set(failpoints.CALLS) == {name for name in methods if not name.startswith("_")}


@pytest.mark.parametrize(
    "value", ["create", "create.during", "create.during:0", "create.during:-1", "create.soon:1",
              "everything.before:1", "create.before:1:2", "create.before:¹"],
)  # fmt: skip
def test_an_unknown_failpoint_arms_nothing(value: str) -> None:
    with pytest.raises(failpoints.BadFailpoint, match="ROOST_KILL_AT"):
        failpoints.arm({failpoints.VARIABLE: value})
    assert failpoints._Armed.name is None


async def test_not_armed_nothing_happens() -> None:
    failpoints.arm({})
    assert await failpoints.around("create", asyncio.sleep(0, "done")) == "done"


async def test_a_process_does_not_start_with_an_unknown_failpoint() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "session_service"),
        env={"PATH": os.environ["PATH"], "ROOST_DATABASE_URL": NOWHERE, failpoints.VARIABLE: "x"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await ended(process)
    assert process.returncode == 2
    assert said.startswith(b"session_service: ROOST_KILL_AT: 'x' is not")
    assert said.count(b"\n") == 1
