"""What every test has: a database of its own, and an event loop that nobody may block."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import grpc
import hypothesis
import psycopg
import pytest
from blockbuster import blockbuster_ctx

from tests.database import Databases, running_server
from tests.launching import close_zygotes

if TYPE_CHECKING:
    from collections.abc import Iterator

hypothesis.settings.register_profile(
    "roost",
    # A busy machine is no failure, and a run is bounded by its examples.
    deadline=None,
    max_examples=100,
    # The same in CI and at home: by the seed that pytest-randomly prints.
    derandomize=False,
    database=None,
    print_blob=True,
)
hypothesis.settings.load_profile("roost")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests come first, so that no worker is left alone with one at the end.

    Hypothesis is seeded with the number in the header: --randomly-seed=N repeats the whole run.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.function):
            hypothesis.seed(config.getoption("randomly_seed"))(item.function)


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks_the_event_loop() -> Iterator[None]:
    """Fail a test in which our code makes a blocking call on the event loop."""
    scanned = ["session_service", "container_service", "local"]
    # The emulator writes its few small files where it stands: written, then answered.
    with blockbuster_ctx(scanned, excluded_modules=["local.fly"]) as guard:
        # Starting a program waits for its exec, which vfork makes a matter of a millisecond.
        guard.functions["os.read"].can_block_in("/subprocess.py", "_execute_child")
        yield


@pytest.fixture(autouse=True)
def logging_is_left_as_found() -> Iterator[None]:
    """A command that runs in this process says what is logged, to the end of the process: other
    tests look for lines that it silences.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session", autouse=True)
def grpc_stays_up() -> None:
    """Keep gRPC's poller thread: its end, when the last channel goes, is waited for by blocking."""
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="session", autouse=True)
def zygotes_are_closed() -> Iterator[None]:
    """What forks our processes ends with the run."""
    yield
    close_zygotes()


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The maker of databases, on this session's (with xdist: this worker's) server."""
    with running_server() as url:
        yield Databases(url)


@pytest.fixture(scope="session")
def migrated_database(databases: Databases) -> Iterator[str]:
    """The template: a database that the real migrations made. Nobody connects to it afterwards."""
    from session_service.storage.migrate import upgrade

    url = databases.create()
    upgrade(url)
    yield url
    databases.drop(url)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database without a table, for tests of the migrations themselves."""
    yield from _lend(databases, databases.create())


@pytest.fixture
def database_url(databases: Databases, migrated_database: str) -> Iterator[str]:
    """A migrated database of this test's own. A connection left open at its end fails the test."""
    url = databases.create(template=migrated_database)
    _make_original(url)
    yield from _lend(databases, url)


def _make_original(url: str) -> None:
    """A copy of the template knows itself for one, and would keep and sweep nothing."""
    from session_service.storage.installation import HERE

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"UPDATE installation SET system_identifier = {HERE}".encode())


def _lend(databases: Databases, url: str) -> Iterator[str]:
    yield url
    left_open = databases.connections(url)
    databases.drop(url)
    assert not left_open, f"connections left open: {left_open}"
