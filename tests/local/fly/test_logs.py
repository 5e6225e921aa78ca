"""The two logs: committed actions, and requests."""

import asyncio
import json
from pathlib import Path

from local.fly.admin import Admin
from local.fly.settings import Settings
from tests.local.fly.api_client import COUNTER, App, Machine, until


async def test_committed_actions_are_logged_in_order_with_labels(
    app: App, admin: Admin, settings: Settings
) -> None:
    labels = {"roost_session": "s1"}
    made = await app.create(name="one", config={"image": COUNTER, "metadata": labels})
    machine = Machine(app, made["id"])
    await machine.wait("started")
    await machine.suspended()
    await machine.post("cordon")
    nonce = (await machine.post("lease", {"ttl": 9}, status=201))["data"]["nonce"]
    await app.client.send("DELETE", f"{machine.path}/lease", nonce=nonce)
    await machine.delete()
    await machine.wait("destroyed")
    actions = await admin.actions()
    assert [action.sequence for action in actions] == list(range(1, len(actions) + 1))
    assert [(action.action, action.source) for action in actions] == [
        ("app_create", "user"),
        ("create", "user"),
        ("started", "flyd"),
        ("suspend", "user"),
        ("suspended", "flyd"),
        ("cordon", "user"),
        ("lease", "user"),
        ("lease_release", "user"),
        ("destroy", "user"),
        ("destroyed", "flyd"),
    ]
    for action in actions[1:]:
        assert (action.app, action.machine, action.name) == ("birds", machine.id, "one")
        assert action.labels == labels
    assert await admin.actions(after=8) == actions[8:]
    assert await admin.actions(after=99) == []
    lines = await asyncio.to_thread(Path(settings.data / "actions.jsonl").read_text)
    assert [json.loads(line) for line in lines.splitlines()] == [vars(one) for one in actions]


async def test_a_rejected_request_is_no_action(app: App, admin: Admin) -> None:
    machine = await app.started()
    actions, requests = await admin.actions(), await admin.requests()
    await machine.delete(412)
    await app.create(400, config={})
    await machine.post("uncordon")
    await machine.post("start")
    assert await admin.actions(after=actions[-1].sequence) == []
    made = [
        (one.method, one.route, one.action, one.machine, one.status)
        for one in await admin.requests(after=requests[-1].sequence)
    ]
    stem = "/v1/apps/{app}/machines"
    assert made == [
        ("DELETE", stem + "/{machine}", "destroy", machine.id, 412),
        ("POST", stem, "create", "", 400),
        ("POST", stem + "/{machine}/uncordon", "uncordon", machine.id, 200),
        ("POST", stem + "/{machine}/start", "start", machine.id, 200),
    ]


async def test_a_request_is_logged_when_it_comes(app: App, admin: Admin) -> None:
    machine = await app.started()
    before = (await admin.requests())[-1].sequence
    waiting = asyncio.create_task(machine.wait("stopped"))

    async def waits() -> bool:
        return bool(await admin.requests(after=before))

    await until(waits)
    newest = (await admin.requests())[-1]
    assert newest.status is None
    await machine.stopped()
    await waiting
    assert (await admin.requests(after=newest.sequence - 1))[0].status == 200


async def test_a_bad_position_in_a_log_is_rejected(app: App) -> None:
    await app.client.expect(400, "GET", "/_emulator/log", after="x")
