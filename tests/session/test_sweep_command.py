"""The operator's commands `sweep` and `claim-installation`, as real processes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from container_service.main import serve as serve_containers
from roost.session.v1 import session_pb2 as pb
from session_service.storage import installation
from tests.container.harness import UNPACED, config_for
from tests.session.harness import World, replica, session_config
from tests.session.sweeping import an_hour_passes, everything, fly, machines, sql, stray
from tests.session.test_process import NOWHERE, launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from tests.service_processes import Forked


#: A process takes a second to start, and many times that on a busy machine.
PATIENCE = 90.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def ended(process: Forked) -> tuple[int | None, str, str]:
    """A command's exit status and output."""
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, out.decode(), err.decode()


@dataclass
class Operated:
    """A running replica, and an operator's commands."""

    roost: World
    database_url: str
    container_target: str

    async def command(self, *arguments: str, **more: str) -> tuple[int | None, str, str]:
        """Run a command in the service's environment; return its status and output."""
        environment = {
            "ROOST_DATABASE_URL": self.database_url,
            "ROOST_CONTAINER_TARGET": self.container_target,
            "ROOST_SWEEP_MIN_AGE": "0",
            "ROOST_SWEEP_PASSES": "2",
            "ROOST_LAG_WINDOW": "0.2",
            **more,
        }
        return await ended(await launch(*arguments, **environment))

    async def document(self, *arguments: str) -> dict[str, Any]:
        """The JSON output of a command that succeeds. Any: JSON."""
        status, out, err = await self.command(*arguments, "--json")
        assert (status, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    async def move(self) -> None:
        """Make the installation row name another cluster."""
        await sql(self.roost.one, "UPDATE installation SET system_identifier = '1'")


@pytest.fixture
async def operated(emulator: Emulator, database_url: str) -> AsyncIterator[Operated]:
    """One replica over the emulator, whose own loops do not run during the test."""
    import httpx

    from local.fly.admin import Admin

    async with (
        serve_containers(config_for(emulator, fly_rate_share=UNPACED)) as containers,
        Admin(emulator.api_url) as admin,
        httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as http,
        replica(session_config(database_url, containers.target, emulator.proxy_url)) as one,
    ):
        yield Operated(World(emulator, admin, [one], http), database_url, containers.target)


async def test_sweep_report_lists_orphans_and_changes_nothing(operated: Operated) -> None:
    """Neither rows nor machines change. The output is a table, and the status 0."""
    roost = operated.roost
    session = (await roost.one.start()).session
    orphan = await stray(roost)
    await roost.suspend_behind_our_back(session)
    await an_hour_passes(roost)
    before, done = await everything(roost), await roost.admin.actions()
    status, out, err = await operated.command("sweep", "--report")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "birds: listed 2, in the rows 1, orphans 1, destroyed 0"
    assert lines[1] == "Changed by the provider: FELL 1"
    assert lines[2].split()[:2] == ["CONTAINER", "SESSION"]
    assert lines[3].startswith(orphan)
    assert lines[3].endswith("no session has it  kept: it is only reported")
    found = await operated.document("sweep", "--report")
    assert found["acted"] is False
    assert [item["container_id"] for item in found["apps"][0]["orphans"]] == [orphan]
    assert await everything(roost) == before
    assert await roost.admin.actions() == done


async def test_sweep_act_does_what_a_pass_does_under_the_same_guards(operated: Operated) -> None:
    """Each run is a pass: kept in the first, destroyed in the second, none left in the third."""
    roost = operated.roost
    session = (await roost.one.start()).session
    orphan = await stray(roost)
    await an_hour_passes(roost)
    first = (await operated.document("sweep", "--act"))["apps"][0]
    assert first["orphans"][0]["spared_because"] == "seen in 1 of 2 consecutive passes"
    status, out, _ = await operated.command("sweep", "--act", "--app", "birds")
    assert status == 0
    assert "orphans 1, destroyed 1" in out
    assert out.splitlines()[-1].endswith("destroyed")
    assert orphan not in await machines(roost)
    third = (await operated.document("sweep", "--act"))["apps"][0]
    assert (third["listed"], third["orphans"], third["destroyed"]) == (1, [], [])
    assert await roost.provider_state(session) == "started"


async def test_sweep_act_completes_the_transitions_that_it_began(operated: Operated) -> None:
    """Traffic started the machine of an ended session: it is paused when the command returns."""
    roost = operated.roost
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id)
    await fly(roost, "POST", f"/{session.container.container_id}/uncordon")
    await roost.counter(session)
    await an_hour_passes(roost)
    found = await operated.document("sweep", "--act")
    assert found["apps"][0]["followed"] == {"WOKE_ENDED": 1}
    assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ENDED
    assert await roost.provider_state(session) == "suspended"


async def test_sweep_of_a_copy_only_reports(operated: Operated) -> None:
    """Also with --act; the output gives the reason."""
    roost = operated.roost
    await stray(roost)
    await operated.move()
    before = (await everything(roost))["orphans"]
    for _ in range(3):
        status, out, _ = await operated.command("sweep", "--act", ROOST_SWEEP_PASSES="1")
        assert status == 0
        assert "No orphan is destroyed: this database is a copy" in out
    assert (await everything(roost))["orphans"] == before
    assert await roost.committed("destroy") == 0


async def test_a_sweep_that_fails_is_one_line(operated: Operated) -> None:
    """Status 1: the provider does not list an app. 2: wrong usage, or no database."""
    for mode in ("--report", "--act"):
        status, out, err = await operated.command(
            "sweep", mode, "--app", "birds", ROOST_CONTAINER_TARGET="127.0.0.1:9"
        )
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "birds was not compared" in err
    status, _, err = await operated.command("sweep", "--report", ROOST_DATABASE_URL=NOWHERE)
    assert (status, err.count("\n")) == (2, 1)
    assert "ROOST_DATABASE_URL" in err
    status, _, err = await operated.command("sweep")
    assert status == 2
    assert "--report" in err


async def test_a_database_without_tables_is_named(empty_database_url: str) -> None:
    """It is probably the wrong database."""
    for name in (("sweep", "--report"), ("claim-installation",)):
        process = await launch(*name, ROOST_DATABASE_URL=empty_database_url)
        status, _, err = await ended(process)
        assert (status, err.count("\n")) == (2, 1)
        assert "session_service migrate" in err


async def test_claim_installation_shows_asks_and_binds(operated: Operated) -> None:
    """Without --yes nothing changes. With it the row names this database, and sweeps act again."""
    roost = operated.roost
    status, out, _ = await operated.command("claim-installation")
    assert (status, "Nothing to do" in out) == (0, True)
    await operated.move()
    before = await everything(roost)
    status, out, _ = await operated.command("claim-installation")
    assert status == 1
    assert "Delete the old database before you do this" in out
    assert "Nothing was changed" in out
    assert await everything(roost) == before
    status, out, _ = await operated.command("claim-installation", "--yes")
    assert status == 0
    assert "Bound to this database" in out
    found = await installation.binding(roost.one.running.database)
    assert found.original
    assert not await installation.claim(
        roost.one.running.database, installation.Binding(found.installation_id, "1", found.here)
    ), "bound only as it was shown"
    status, out, _ = await operated.command("claim-installation", "--yes")
    assert (status, "Nothing to do" in out) == (0, True)
    orphan = await stray(roost)
    assert [
        (await operated.document("sweep", "--act"))["apps"][0]["destroyed"] for _ in range(2)
    ] == [[], [orphan]]
