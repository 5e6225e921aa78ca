"""Apps, tokens and the envelope of errors."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from local.fly.emulator import Emulator, serve
from local.fly.settings import Settings
from tests.cases import each
from tests.local.fly.api_client import ApiClient, App, error_of


@each("header", [None, "", "Bearer", "FlyV1", "test-token"])
async def test_a_call_with_no_token_is_rejected(emulator: Emulator, header: str | None) -> None:
    """Fly conformance case 1."""
    headers = {} if header is None else {"authorization": header}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        reply = await http.get(f"{emulator.api_url}/v1/apps/birds", headers=headers)
    assert reply.status_code == 401
    assert "token validation error" in error_of(reply)["error"]


@pytest.mark.parametrize(
    "header",
    ["Bearer fm2_x", "FlyV1 fm2_x", "Bearer FlyV1 fm2_x", "bearer FLYV1 fm2_a,fm2_x"],
)
async def test_every_form_of_a_token_is_taken(settings: Settings, header: str) -> None:
    """Fly conformance case 2."""
    async with (
        serve(replace(settings, token="fm2_x")) as emulator,
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
    ):
        url = f"{emulator.api_url}/v1/apps?org_slug=personal"
        assert (await http.get(url, headers={"authorization": header})).status_code == 200
        assert (await http.get(url, headers={"authorization": "Bearer no"})).status_code == 401


@each("path", ["/v1/apps/none", "/v1/nothing", "/v1/apps?org_slug=x", "/"])
async def test_every_response_has_a_request_id(client: ApiClient, path: str) -> None:
    """Fly conformance case 3."""
    reply = await client.send("GET", path)
    assert len(reply.headers["fly-request-id"].partition("-")[0]) == 26
    if reply.status_code >= 400:
        error_of(reply)


@pytest.mark.parametrize("name_field", ["app_name", "name"])
async def test_an_app_is_created_and_found(client: ApiClient, name_field: str) -> None:
    """Fly conformance case 4."""
    body = {name_field: "birds", "org_slug": "personal", "network": "own"}
    made = await client.expect(201, "POST", "/v1/apps", body)
    assert made["id"]
    assert made["created_at"] > 1_600_000_000_000
    found = await client.expect(200, "GET", "/v1/apps/birds")
    assert (found["name"], found["network"], found["organization"]["slug"]) == (
        "birds",
        "own",
        "personal",
    )


async def test_an_app_created_with_wait_is_answered_whole(client: ApiClient) -> None:
    body = {"name": "birds", "org_slug": "personal"}
    assert (await client.expect(201, "POST", "/v1/apps", body, wait="true"))["name"] == "birds"


async def test_a_second_app_of_a_name_is_rejected(app: App) -> None:
    """Fly conformance case 5."""
    body = {"app_name": app.name, "org_slug": "other"}
    error = await app.client.expect(422, "POST", "/v1/apps", body)
    assert error["status"] == "name_taken"


@each(
    ("body", "status"),
    [
        ({"app_name": "birds"}, 400),
        ({"org_slug": "personal"}, 422),
        ({"app_name": "Bad Name", "org_slug": "personal"}, 422),
        ({"app_name": 7, "org_slug": "personal"}, 400),
        ([], 400),
    ],
)
async def test_an_app_that_is_invalid_is_rejected(
    client: ApiClient, body: object, status: int
) -> None:
    reply = await client.send("POST", "/v1/apps", body)
    assert reply.status_code == status
    error_of(reply)


async def test_a_missing_app_is_404_and_a_foreign_one_403(
    settings: Settings, tmp_path: Path
) -> None:
    """Fly conformance case 6."""
    async with (
        serve(replace(settings, foreign_apps="theirs")) as emulator,
        ApiClient(emulator.api_url) as client,
    ):
        missing = await client.expect(404, "GET", "/v1/apps/none")
        assert missing["error"] == "app not found"
        await client.expect(403, "GET", "/v1/apps/theirs")
        await client.expect(404, "GET", "/v1/apps/none/machines")


async def test_deleting_an_app_takes_its_machines_along(app: App) -> None:
    """Fly conformance case 7."""
    machine = await app.started()
    reply = await app.client.send("DELETE", f"/v1/apps/{app.name}")
    assert (reply.status_code, reply.content) == (202, b"")
    await app.client.expect(404, "GET", f"/v1/apps/{app.name}")
    await app.client.expect(404, "GET", machine.path)


async def test_the_apps_of_an_organisation_are_listed(app: App) -> None:
    """Fly conformance case 8."""
    body = {"app_name": "bees", "org_slug": "other"}
    await app.client.expect(201, "POST", "/v1/apps", body)
    listed = await app.client.expect(200, "GET", "/v1/apps", org_slug="personal")
    assert listed["total_apps"] == 1
    assert [found["name"] for found in listed["apps"]] == ["birds"]
    await app.client.expect(400, "GET", "/v1/apps")
