"""Endpoints of the document that no numbered case covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.provider_client import App, Json, unique, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def test_the_machines_of_an_organisation_come_in_pages(app: App) -> None:
    mine = {app.create(name=unique("m"), skip_launch=True)["id"] for _ in range(3)}
    organisation = app.api.expect(200, "GET", app.path)["organization"]["slug"]
    path = f"/v1/orgs/{organisation}/machines"
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = app.api.expect(200, "GET", path, limit=2, **cursor)
        found += [one["id"] for one in page["machines"] if one["app_name"] == app.name]
        if not page.get("next_cursor"):
            break
        cursor = {"cursor": page["next_cursor"]}
    assert sorted(found) == sorted(mine)
    whole = app.api.expect(200, "GET", path, updated_after="2020-01-01T00:00:00Z")
    assert mine <= {one["id"] for one in whole["machines"]}
    assert set(whole["machines"][0]["config"]) <= {"image", "guest", "metadata"}
    none = app.api.expect(200, "GET", path, updated_after="2199-01-01T00:00:00Z")
    assert none["machines"] == []
    app.api.expect(400, "GET", path, updated_after="yesterday")


def test_an_app_has_addresses(app: App) -> None:
    path = f"{app.path}/ip_assignments"
    given = app.api.expect(200, "POST", path, {"type": "private_v6"})
    assert given["ip"] in [one["ip"] for one in app.api.expect(200, "GET", path)["ips"]]
    app.api.expect(204, "DELETE", f"{path}/{given['ip']}")
    assert given["ip"] not in [one["ip"] for one in app.api.expect(200, "GET", path)["ips"]]
    app.api.expect(400, "POST", path, {"type": "v5"})


def test_a_machines_memory_has_a_limit(app: App) -> None:
    machine = app.machine()
    assert machine.call(200, "GET", "memory")["limit_mb"] == 256
    assert machine.call(200, "PUT", "memory", {"limit_mb": 192})["limit_mb"] == 192
    assert machine.post("memory/reclaim", {"amount_mb": 16})["actual_mb"] <= 16


def test_the_platform_lists_regions_and_capacity(app: App) -> None:
    regions = app.api.expect(200, "GET", "/v1/platform/regions")
    assert regions["Nearest"] in [one["code"] for one in regions["Regions"]]
    body = {"org_slug": "personal", "region": regions["Nearest"], "count": 1}
    placed = app.api.expect(200, "POST", "/v1/platform/placements", body)
    assert {one["Region"] for one in placed["Regions"]} == {regions["Nearest"]}
    app.api.expect(400, "POST", "/v1/platform/placements", {})


def test_a_token_names_its_owner(app: App) -> None:
    assert app.api.expect(200, "GET", "/v1/tokens/current")["tokens"][0]["org_slug"]
    reply = app.api.send("POST", "/v1/tokens/oidc", {"aud": "audience"})
    assert (reply.status_code, reply.text.count(".")) == (200, 2)
    header = f"Bearer {app.api.token}"
    assert app.api.expect(200, "POST", "/v1/tokens/authenticate", {"header": header})
    assert app.api.expect(200, "POST", "/v1/tokens/authorize", {"header": header, "access": {}})
    assert app.api.expect(200, "POST", f"{app.path}/deploy_token", {"expiry": "1h"})["token"]


def test_a_restart_boots_again(app: App) -> None:
    machine = app.machine()
    boot_id = machine.boot_id()
    newest = machine.get()["events"][0]["id"]
    machine.post("restart", timeout="5s")
    machine.wait("started", from_event_id=newest)
    assert machine.boot_id() != boot_id
    app.api.expect(400, "POST", f"{machine.path}/restart", signal="SIGNO")


def test_a_token_for_the_key_store_is_plain_text(app: App) -> None:
    reply = app.api.send("POST", "/v1/tokens/kms")
    assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (
        200,
        "text/plain",
    )
    assert reply.text


@pytest.mark.parametrize("order", ["asc", "desc", ""])
@pytest.mark.parametrize("member", ["pid", "rss", "command", "rtime"])
def test_processes_come_in_the_order_asked_for(app: App, member: str, order: str) -> None:
    machine = app.scripted("sleep 1000 & sleep 1001 & touch ready; wait")
    query = {"sort_by": member, "order": order} if order else {"sort_by": member}
    found = machine.call(200, "GET", "ps", **query)
    assert len(found) >= 3
    values = [one[member] for one in found]
    assert values == sorted(values, reverse=order == "desc")
    assert {"pid", "stime", "rtime", "command", "directory", "rss"} <= set(found[0])


@pytest.mark.parametrize("query", [{"sort_by": "colour"}, {"order": "sideways"}])
def test_an_order_that_there_is_not_is_400(faulty: App, query: dict[str, str]) -> None:
    machine = faulty.machine()
    assert machine.call(400, "GET", "ps", **query)["error"]


def test_volumes_of_a_name_are_on_hosts_of_their_own(
    tuned: Callable[..., AbstractContextManager[App]],
) -> None:
    with tuned(zones="2") as app:
        path = f"{app.path}/volumes"
        made = [app.api.expect(200, "POST", path, {"name": "data"}) for _ in range(2)]
        assert len({one["zone"] for one in made}) == 2
        text = app.api.expect(412, "POST", path, {"name": "data"})["error"]
        assert "insufficient resources" in text
        anywhere = {"name": "data", "require_unique_zone": False}
        app.api.expect(200, "POST", path, anywhere)
        # Of another name, or in another region, there is room; not where any name counts.
        app.api.expect(200, "POST", path, {"name": "other"})
        app.api.expect(200, "POST", path, {"name": "data", "region": "lhr"})
        app.api.expect(412, "POST", path, {"name": "third", "unique_zone_app_wide": True})
        app.api.expect(200, "DELETE", f"{path}/{made[0]['id']}")
        fresh = app.api.expect(200, "POST", path, {"name": "wide", "require_unique_zone": False})
        assert fresh["zone"] in {one["zone"] for one in made}


def test_volumes_are_backed_up_by_themselves_unless_switched_off(
    tuned: Callable[..., AbstractContextManager[App]],
) -> None:
    with tuned(auto_backup_ms="300") as app:
        path = f"{app.path}/volumes"
        body = {"name": "kept", "snapshot_retention": 7}
        kept = app.api.expect(200, "POST", path, body)
        left = app.api.expect(
            200, "POST", path, {"name": "left_alone", "auto_backup_enabled": False}
        )
        assert (kept["auto_backup_enabled"], left["auto_backup_enabled"]) == (True, False)

        def taken() -> list[Json]:
            listed = app.api.expect(200, "GET", f"{path}/{kept['id']}/snapshots")
            return [one for one in listed if one["status"] == "created"]

        until(lambda: len(taken()) >= 2)
        assert {one["retention_days"] for one in taken()} == {7}
        assert app.api.expect(200, "GET", f"{path}/{left['id']}/snapshots") == []
