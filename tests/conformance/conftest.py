"""What the cases run against: an emulator of their own, or Fly where a token and an app are given.

Against Fly: `FLY_API_TOKEN`, and in `ROOST_CONFORMANCE_APP` the name of an app that does not
exist yet: the run makes it (in `ROOST_CONFORMANCE_ORG`, else `personal`), refuses one that is
there, makes at most `ROOST_CONFORMANCE_MACHINES` (200) small machines, a test's at a time, and
deletes the app with all that is in it at its end.
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
from tests.conformance.emulators import FAST, SLOW, TOKEN, Running, emulator
from tests.conformance.wire import Api, App, Spend, unique

if TYPE_CHECKING:
    from pathlib import Path

FLY = "https://api.machines.dev"


@dataclass(frozen=True)
class Place:
    """Where apps can be had: one provider, and what it runs."""

    api: Api
    image: str
    proxy_url: str
    shared_app: str = ""
    """The one app that everything happens in; empty: each test gets its own."""


NewPlace = Callable[..., AbstractContextManager[Place]]


@pytest.fixture(scope="session")
def document() -> schema.Document | None:
    """Fly's OpenAPI document, where it is at hand."""
    path = schema.find()
    return schema.Document(path) if path else None


@pytest.fixture(scope="session")
def place(
    document: schema.Document | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Fly, or an emulator whose transitions are short."""
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


@pytest.fixture(scope="session")
def slow_place(
    place: Place, document: schema.Document | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Where transitions last long enough to act in their middle: Fly as it is."""
    if place.shared_app:
        yield place
        return
    with (
        emulator(tmp_path_factory.mktemp("slow"), SLOW) as running,
        place_of(running, document) as made,
    ):
        yield made


@pytest.fixture
def app(place: Place) -> Iterator[App]:
    """An app to make machines in; they are gone when the test ends."""
    with lent_app(place) as made:
        yield made


@pytest.fixture
def slow_app(slow_place: Place) -> Iterator[App]:
    """An app whose machines take their time."""
    with lent_app(slow_place) as made:
        yield made


@pytest.fixture
def tuned(
    place: Place, document: schema.Document | None, tmp_path: Path
) -> Callable[..., AbstractContextManager[App]]:
    """Emulators set otherwise, for what Fly leaves open: a call gives an app of a new one."""
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
def faulty(place: Place, app: App) -> App:
    """An app of an emulator that can be made to go wrong."""
    if place.shared_app:
        pytest.skip("a fault on demand: Fly has none")
    return app


@contextmanager
def place_of(running: Running, document: schema.Document | None) -> Iterator[Place]:
    """An emulator as a place."""
    with Api(running.api_url, TOKEN, document, Spend(sys.maxsize)) as api:
        yield Place(api, "roost/base", running.proxy_url)


@contextmanager
def at_fly(token: str, app: str, document: schema.Document | None) -> Iterator[Place]:
    """Fly itself, in an app that this run makes and deletes."""
    spend = Spend(int(os.environ.get("ROOST_CONFORMANCE_MACHINES", "200")))
    with Api(FLY, token, document, spend, paced=True) as api:
        if api.send("GET", f"/v1/apps/{app}").status_code != 404:
            pytest.exit(f"the app {app} exists: a run only uses an app that it made itself", 3)
        org = os.environ.get("ROOST_CONFORMANCE_ORG", "personal")
        api.expect(201, "POST", "/v1/apps", {"app_name": app, "org_slug": org})
        try:
            image = os.environ.get("ROOST_CONFORMANCE_IMAGE", "busybox:stable")
            yield Place(api, image, "", shared_app=app)
        finally:
            api.expect(202, "DELETE", f"/v1/apps/{app}", force="true")


@contextmanager
def lent_app(place: Place) -> Iterator[App]:
    """An app for one test, emptied afterwards."""
    name = place.shared_app or unique("app")
    if not place.shared_app:
        place.api.expect(201, "POST", "/v1/apps", {"app_name": name, "org_slug": "personal"})
    app = App(place.api, name, place.image)
    try:
        yield app
    finally:
        _empty(app)


def _empty(app: App) -> None:
    """Destroy what a test has left: what costs money must not wait for the end of the run."""
    if not app.api.paced:
        with contextlib.suppress(AssertionError):
            app.api.expect(202, "DELETE", app.path)
        return
    for machine in app.list():
        app.api.send("DELETE", f"{app.path}/machines/{machine['id']}", force="true")
    for volume in app.api.expect(200, "GET", f"{app.path}/volumes"):
        app.api.send("DELETE", f"{app.path}/volumes/{volume['id']}")
