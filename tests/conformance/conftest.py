"""The providers of the conformance tests: an emulator, or Fly if a token and an app are given.

To run against Fly, set `FLY_API_TOKEN`, and `ROOST_CONFORMANCE_APP` to the name of an app that does
not exist. The run creates it (in `ROOST_CONFORMANCE_ORG`, by default `personal`) and fails if it
exists already. It creates at most `ROOST_CONFORMANCE_MACHINES` (200) small machines, deletes those
of a test after the test, and the app with everything in it at the end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conformance import schema
from tests.conformance.emulators import FAST, FOREVER, TOKEN, Running, emulator
from tests.conformance.provider_client import Api, App, Spend, unique

if TYPE_CHECKING:
    from pathlib import Path

FLY = "https://api.machines.dev"


@dataclass(frozen=True)
class Provider:
    """A provider, its image for tests, and its proxy."""

    api: Api
    image: str
    proxy_url: str
    shared_app: str = ""
    """The one app of all tests; empty: each test gets its own."""


NewProvider = Callable[..., AbstractContextManager[Provider]]


@pytest.fixture(scope="session")
def document() -> schema.Document | None:
    """Fly's OpenAPI document, if available."""
    path = schema.find()
    return schema.Document(path) if path else None


@pytest.fixture(scope="session")
def place(
    document: schema.Document | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Provider]:
    """Fly, or an emulator with short transitions."""
    token, app = os.environ.get("FLY_API_TOKEN"), os.environ.get("ROOST_CONFORMANCE_APP")
    if token and app:
        with at_fly(token, app, document) as found:
            yield found
        return
    with (
        emulator(tmp_path_factory.mktemp("fast"), FAST) as running,
        place_of(running, document) as made,
    ):
        yield made


@pytest.fixture
def app(place: Provider) -> Iterator[App]:
    """An app for a test; its machines are destroyed at the end of the test."""
    with lent_app(place) as made:
        yield made


@pytest.fixture
def slowed(
    place: Provider, app: App, document: schema.Document | None, tmp_path: Path
) -> Callable[[str], AbstractContextManager[App]]:
    """A factory of apps in which one transition, named by its setting, lasts long enough to act in
    the middle of it.
    """

    @contextmanager
    def lending(setting: str) -> Iterator[App]:
        if place.shared_app:
            yield app
            return
        with (
            emulator(tmp_path / unique("e"), FAST | {setting: FOREVER}) as running,
            place_of(running, document) as made,
            lent_app(made) as slow,
        ):
            yield slow

    return lending


@pytest.fixture
def tuned(
    place: Provider, document: schema.Document | None, tmp_path: Path
) -> Callable[..., AbstractContextManager[App]]:
    """A factory of apps of emulators with other settings, for behaviour that Fly leaves open."""
    if place.shared_app:
        pytest.skip("a setting of the emulator: nothing to set at Fly")

    @contextmanager
    def lending(*, limits: bool = False, **settings: str) -> Iterator[App]:
        with (
            emulator(tmp_path / unique("e"), FAST | settings, limits=limits) as running,
            place_of(running, document) as made,
            lent_app(made) as app,
        ):
            yield app

    return lending


@pytest.fixture
def faulty(place: Provider, app: App) -> App:
    """An app of an emulator that can inject faults."""
    if place.shared_app:
        pytest.skip("a fault on demand: Fly has none")
    return app


@contextmanager
def place_of(running: Running, document: schema.Document | None) -> Iterator[Provider]:
    """Run an emulator as the provider."""
    with Api(running.api_url, TOKEN, document, Spend(sys.maxsize)) as api:
        yield Provider(api, "roost/base", running.proxy_url)


@contextmanager
def at_fly(token: str, app: str, document: schema.Document | None) -> Iterator[Provider]:
    """Fly itself, with an app that this run creates and deletes."""
    spend = Spend(int(os.environ.get("ROOST_CONFORMANCE_MACHINES", "200")))
    with Api(FLY, token, document, spend, paced=True) as api:
        if api.send("GET", f"/v1/apps/{app}").status_code != 404:
            pytest.exit(f"the app {app} exists: a run only uses an app that it made itself", 3)
        org = os.environ.get("ROOST_CONFORMANCE_ORG", "personal")
        api.expect(201, "POST", "/v1/apps", {"app_name": app, "org_slug": org})
        try:
            image = os.environ.get("ROOST_CONFORMANCE_IMAGE", "busybox:stable")
            yield Provider(api, image, "", shared_app=app)
        finally:
            api.expect(202, "DELETE", f"/v1/apps/{app}", force="true")


@contextmanager
def lent_app(place: Provider) -> Iterator[App]:
    """An app for one test; its machines are destroyed afterwards."""
    name = place.shared_app or unique("app")
    if not place.shared_app:
        place.api.expect(201, "POST", "/v1/apps", {"app_name": name, "org_slug": "personal"})
    app = App(place.api, name, place.image)
    try:
        yield app
    finally:
        _empty(app)


def _empty(app: App) -> None:
    """Destroy the machines of a test at once: on Fly they cost money."""
    if not app.api.paced:
        with contextlib.suppress(AssertionError):
            app.api.expect(202, "DELETE", app.path)
        return
    for machine in app.list():
        app.api.send("DELETE", f"{app.path}/machines/{machine['id']}", force="true")
    for volume in app.api.expect(200, "GET", f"{app.path}/volumes"):
        app.api.send("DELETE", f"{app.path}/volumes/{volume['id']}")
