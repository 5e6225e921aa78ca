"""Inside a machine: exec, its boot id, its environment."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from local.fly.emulator import serve
from local.fly.settings import Settings
from tests.cases import each
from tests.eventually import eventually
from tests.local.fly.api_client import BASE, ApiClient, App, Json, Machine
from tests.local.fly.process_state import GONE, process_state

BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.mark.parametrize(
    "body",
    [
        {"command": ["sh", "-c", "echo out; echo err >&2; exit 3"]},
        {"cmd": "sh -c 'echo out; echo err >&2; exit 3'"},
    ],
)
async def test_exec_returns_how_a_command_ended(app: App, body: Json) -> None:
    """Fly conformance case 65."""
    machine = await app.started()
    ran = await machine.post("exec", body)
    assert (ran["exit_code"], ran["exit_signal"]) == (3, 0)
    assert (ran["stdout"], ran["stderr"]) == ("out\n", "err\n")


@pytest.mark.parametrize(
    "body",
    [
        {"command": ["cat", BOOT_ID]},
        {"command": ["/bin/cat", BOOT_ID]},
        {"command": ["sh", "-c", f"cat {BOOT_ID}"]},
        {"command": ["sh", "-c", f"read id <{BOOT_ID}; echo $id"]},
        {"cmd": f"cat {BOOT_ID}"},
    ],
)
async def test_the_boot_id_is_the_machines_own(app: App, body: Json) -> None:
    first, second = await app.started(), await app.started()
    ran = await first.post("exec", body)
    assert len(ran["stdout"].strip()) == 36
    assert ran["stdout"].strip() == await first.boot_id() != await second.boot_id()


async def test_the_tcp_table_has_the_guests_own_sockets_at_its_own_port(app: App) -> None:
    """Guests share the host's network, whose table lists all sockets."""
    first, _ = await app.started(), await app.started()

    async def listening() -> list[list[str]]:
        ran = await first.run("cat", "/proc/net/tcp", "/proc/net/tcp6")
        rows = [line.split() for line in ran["stdout"].splitlines()]
        assert [row[0] for row in rows].count("sl") == 2
        return [row for row in rows if row[0] != "sl"]

    assert [row[1].rpartition(":")[2] for row in await eventually(listening)] == ["1F90"]
    piped = await first.run("sh", "-c", "cat </proc/net/tcp | wc -l")
    assert piped["stdout"].strip() == "2"


async def test_an_exec_that_takes_too_long_is_killed(app: App) -> None:
    machine = await app.started()
    failed = await machine.post("exec", {"command": ["sleep", "100"], "timeout": 1}, status=408)
    assert failed["error"].startswith("deadline_exceeded")
    processes = await app.client.expect(200, "GET", f"{machine.path}/ps")
    assert not [process for process in processes if "sleep" in process["command"]]


async def test_an_exec_killed_by_a_signal_says_which(app: App) -> None:
    machine = await app.started()
    ran = await machine.run("sh", "-c", "kill -9 $$")
    assert (ran["exit_code"], ran["exit_signal"]) == (0, 9)


async def test_a_command_that_is_not_there_exits_127(app: App) -> None:
    machine = await app.started()
    ran = await machine.run("no-such-command")
    assert ran["exit_code"] == 127
    assert "no-such-command" in ran["stderr"]


async def test_much_output_comes_whole(app: App) -> None:
    machine = await app.started()
    ran = await machine.run("sh", "-c", "yes | head -c 3000000; yes | head -c 3000000 >&2")
    assert (len(ran["stdout"]), len(ran["stderr"])) == (3_000_000, 3_000_000)


@pytest.mark.parametrize(("choice", "got"), [("dropped", ""), ("delivered", "given")])
async def test_stdin_is_delivered_when_it_is_set(settings: Settings, choice: str, got: str) -> None:
    async with (
        serve(settings.with_texts({"exec_stdin": choice})) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        await client.expect(201, "POST", "/v1/apps", {"name": "birds", "org_slug": "x"})
        machine = await App(client, "birds").started()
        assert (await machine.run("cat", stdin="given"))["stdout"] == got


@each("body", [{}, {"command": []}, {"cmd": ""}, {"cmd": "'"}, {"command": "ls"}, {"cmd": ["ls"]}])
async def test_an_exec_without_a_command_is_rejected(app: App, body: Json) -> None:
    machine = await app.started()
    await machine.post("exec", body, status=400)


async def test_a_guest_finds_itself_in_its_environment(app: App) -> None:
    machine = await app.started(
        env={"COLOUR": "red", "FLY_APP_NAME": "mine", "PRIMARY_REGION": "lhr"},
        guest={"cpu_kind": "shared", "cpus": 1, "memory_mb": 512},
    )
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    env = json.loads((await machine.run("python3", "-c", code))["stdout"])
    shown = await machine.get()
    assert env["COLOUR"] == "red"
    assert env["PRIMARY_REGION"] == "lhr"
    assert env["FLY_APP_NAME"] == "birds"
    assert env["FLY_MACHINE_ID"] == env["FLY_ALLOC_ID"] == machine.id
    assert env["FLY_REGION"] == "iad"
    assert env["FLY_MACHINE_VERSION"] == shown["instance_id"]
    assert env["FLY_PRIVATE_IP"] == shown["private_ip"]
    assert env["FLY_VM_MEMORY_MB"] == "512"
    assert env["FLY_IMAGE_REF"] == "registry-1.docker.io/roost/counter:latest"
    assert int(env["PORT"]) > 0
    assert env["HOME"] == (await machine.run("pwd"))["stdout"].strip()


async def test_a_guest_does_not_see_the_emulators_environment(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLY_API_TOKEN", "secret")
    machine = await app.started()
    assert "secret" not in (await machine.run("env"))["stdout"]


async def test_machines_do_not_share_files(app: App) -> None:
    first, second = await app.started(), await app.started()
    await first.run("touch", "mark")
    assert (await second.run("ls"))["stdout"] == ""


async def test_ps_lists_the_main_process(app: App) -> None:
    machine = await app.started()

    async def listed() -> bool:
        # A process that has just been started has its command before it has any memory resident.
        processes = await app.client.expect(200, "GET", f"{machine.path}/ps")
        assert "local.counter" in processes[0]["command"]
        return bool(processes[0]["rss"] > 0)

    assert await eventually(listed)


async def test_a_command_that_cannot_start_ends_no_other_guest(app: App) -> None:
    """A module that is not there is executed like any command, and its interpreter says so."""
    machine = await app.started()
    before = await pid_of(machine)
    failing = [sys.executable, "-m", "local.nothing"]
    config = {"image": BASE, "init": {"exec": failing}, "restart": {"policy": "no"}}
    other = Machine(app, (await app.create(config=config))["id"])

    async def ended() -> bool:
        return await other.state() in ("stopped", "failed")

    assert await eventually(ended)
    assert await pid_of(machine) == before


async def test_a_killed_process_server_takes_its_guests_along_and_is_replaced(app: App) -> None:
    """The emulator sees the guests end, and the next start works."""
    machine = await app.started(restart={"policy": "no"})
    os.kill(parent_of(await pid_of(machine)), signal.SIGKILL)
    await machine.wait("stopped")
    again = await app.started()
    assert process_state(await pid_of(again)) not in GONE


def parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


async def pid_of(machine: Machine) -> int:
    """The process id of its main process."""
    found = await machine._client.expect(200, "GET", f"{machine.path}/ps")
    return int(found[0]["pid"])
