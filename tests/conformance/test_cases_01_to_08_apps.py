"""Cases 1 to 8: authentication and apps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.provider_client import App, error_of, unique

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conformance.conftest import Provider


def test_case_01_no_or_a_wrong_token_is_401(app: App) -> None:
    for header in ("", "Bearer", "Bearer wrong", "wrong"):
        reply = app.api.send("GET", app.path, headers={"authorization": header})
        assert reply.status_code == 401
        assert "token" in error_of(reply)


def test_case_02_every_form_of_the_authorization_header_is_taken(app: App) -> None:
    token = app.api.token.removeprefix("FlyV1 ")
    for header in (f"Bearer {token}", f"FlyV1 {token}", f"Bearer FlyV1 {token}"):
        reply = app.api.send("GET", app.path, headers={"authorization": header})
        assert reply.status_code == 200


def test_case_03_every_reply_has_a_request_id_and_errors_are_json(app: App) -> None:
    good, bad = app.api.send("GET", app.path), app.api.send("GET", f"{app.path}/machines/0")
    assert bad.status_code == 404
    assert good.headers["fly-request-id"] != bad.headers["fly-request-id"]
    assert error_of(bad)


@pytest.mark.parametrize("field", ["app_name", "name"])
def test_case_04_an_app_is_made_by_either_name(place: Provider, field: str) -> None:
    name = unique("app")
    body = {field: name, "org_slug": "personal"}
    made = place.api.expect(201, "POST", "/v1/apps", body)
    try:
        assert made["id"]
        assert isinstance(made["created_at"], int)
        assert place.api.expect(200, "GET", f"/v1/apps/{name}")["name"] == name
    finally:
        place.api.expect(202, "DELETE", f"/v1/apps/{name}")


def test_case_05_a_name_that_is_taken_is_422(app: App) -> None:
    reply = app.api.send("POST", "/v1/apps", {"app_name": app.name, "org_slug": "personal"})
    assert reply.status_code == 422
    assert reply.json()["status"] == "name_taken"
    assert "already been taken" in error_of(reply)


def test_case_06_a_free_name_is_404(app: App) -> None:
    assert error_of(app.api.send("GET", f"/v1/apps/{unique('free')}"))
    app.api.expect(404, "GET", f"/v1/apps/{unique('free')}")


def test_case_06_an_app_of_another_organisation_is_403(
    tuned: Callable[..., AbstractContextManager[App]],
) -> None:
    with tuned(foreign_apps="theirs") as app:
        assert app.api.expect(403, "GET", "/v1/apps/theirs")["error"] == "unauthorized"


def test_case_07_the_end_of_an_app_is_the_end_of_all_in_it(place: Provider) -> None:
    name = unique("app")
    place.api.expect(201, "POST", "/v1/apps", {"app_name": name, "org_slug": "personal"})
    app = App(place.api, name, place.image)
    volume = place.api.expect(200, "POST", f"{app.path}/volumes", {"name": "data", "size_gb": 1})
    machine = app.machine(mounts=[{"volume": volume["id"], "path": "/data"}])
    reply = place.api.send("DELETE", app.path, force="true")
    assert (reply.status_code, reply.content) == (202, b"")
    for path in (app.path, machine.path, f"{app.path}/volumes/{volume['id']}"):
        place.api.expect(404, "GET", path)


def test_case_08_the_apps_of_an_organisation_are_listed(app: App) -> None:
    organisation = app.api.expect(200, "GET", app.path)["organization"]["slug"]
    listed = app.api.expect(200, "GET", "/v1/apps", org_slug=organisation)
    assert listed["total_apps"] == len(listed["apps"])
    assert app.name in [one["name"] for one in listed["apps"]]
