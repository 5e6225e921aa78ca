"""Fixtures for all tests: a database per test, and the check that no code blocks the event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import traceback
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import grpc
import hypothesis
import psycopg
import pytest
from blockbuster import blockbuster_ctx

from tests.database import Databases, Reused, running_server
from tests.service_processes import close_fork_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: The marker of tests that are too long for `make test`; `make proof` runs them.
PROOF = "proof"

#: How many examples a property test draws: few in `make test`, whose seeds differ from run to run,
#: and many in `make proof`, which asks for its profile by name.
EXAMPLES = {"roost": 30, PROOF: 300}

for name, count in EXAMPLES.items():
    hypothesis.settings.register_profile(
        name,
        # No limits of time, because machines may be busy; the number of examples bounds a run.
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        max_examples=count,
        # Reproducible by the seed that pytest-randomly prints.
        derandomize=False,
        database=None,
        print_blob=True,
    )
hypothesis.settings.load_profile("roost")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker runs one alone at the end. Proofs only if `-m` asks.

    Hypothesis is seeded with the number in the header: --randomly-seed=N repeats the whole run.
    """
    if PROOF not in config.getoption("markexpr"):
        proofs = [item for item in items if item.get_closest_marker(PROOF)]
        config.hook.pytest_deselected(items=proofs)
        items[:] = [item for item in items if not item.get_closest_marker(PROOF)]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.function):
            hypothesis.seed(config.getoption("randomly_seed"))(item.function)


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from the modules and the three thousand collected tests.

    They stay until the end, and each full collection would look at all of them again: a seventh of
    the suite's CPU. What tests create is collected, but less often: a collection each few hundred
    objects takes 4 % of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def log_records_keep_no_frames() -> Iterator[None]:
    """Empty the frames of exceptions that are logged.

    A captured record lives as long as its test. Through an exception among its arguments it would
    keep the locals of every function that the exception passed. A connection that could not be
    established in time is one of them, and the server would count it as open.
    """
    make = logging.getLogRecordFactory()

    # Any: what logging passes to its factory.
    def emptied(*given: Any, **named: Any) -> logging.LogRecord:
        record = make(*given, **named)
        arguments = record.args if isinstance(record.args, tuple) else ()
        for argument in (*arguments, record.exc_info[1] if record.exc_info else None):
            if isinstance(argument, BaseException):
                clear_frames(argument)
        return record

    logging.setLogRecordFactory(emptied)
    yield
    logging.setLogRecordFactory(make)


def clear_frames(error: BaseException) -> None:
    """Empty the frames that an exception has passed and left, and those of what it came from."""
    waiting = waiting_frames()
    chain: list[BaseException] = []
    origin: BaseException | None = error
    while origin is not None and origin not in chain:
        chain.append(origin)
        for frame, _ in traceback.walk_tb(origin.__traceback__):
            if frame in waiting or frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
                continue
            with suppress(RuntimeError):  # it runs
                frame.clear()
        origin = origin.__cause__ or origin.__context__


def waiting_frames() -> set[FrameType]:
    """The frames of coroutines that wait: one that has caught an exception, keeps it, and waits for
    something else. To empty its frame would end it.
    """
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no event loop runs
        return set()
    frames: set[FrameType] = set()
    for task in tasks:
        # Any: coroutines, generators and what else can be awaited.
        part: Any = task.get_coro()
        while part is not None:
            frame = getattr(part, "cr_frame", None) or getattr(part, "gi_frame", None)
            if frame is not None:
                frames.add(frame)
            part = getattr(part, "cr_await", None) or getattr(part, "gi_yieldfrom", None)
    return frames


@pytest.fixture(scope="session", autouse=True)
def nothing_blocks_the_event_loop() -> Iterator[None]:
    """Fail a test in which code of this project makes a blocking call on the event loop."""
    scanned = ["session_service", "container_service", "grpc_edge", "local"]
    # The emulator is allowed to block: it writes small files, on purpose before it answers.
    with blockbuster_ctx(scanned, excluded_modules=["local.fly"]) as guard:
        # Starting a program waits for its exec, about a millisecond with vfork.
        guard.functions["os.read"].can_block_in("/subprocess.py", "_execute_child")
        yield


@pytest.fixture(autouse=True)
def logging_configuration_is_restored() -> Iterator[None]:
    """Restore the logging configuration, which a command that runs in this process changes.

    Otherwise later tests would miss log lines that they check for.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session", autouse=True)
def grpc_stays_up() -> None:
    """Keep one channel open: gRPC blocks the thread that closes the last one."""
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="session", autouse=True)
def fork_servers_are_closed() -> Iterator[None]:
    """End the fork servers at the end of the run."""
    yield
    close_fork_servers()


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The factory of databases, on the server of this run (with xdist: of this worker)."""
    with running_server() as url, closing(Databases(url)) as made:
        yield made


@pytest.fixture(scope="session")
def migrated_database(databases: Databases) -> Iterator[str]:
    """The template: a database created by the real migrations. No test connects to it."""
    from session_service.storage.migrate import upgrade

    url = databases.create()
    upgrade(url)
    yield url
    databases.drop(url)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """An empty database, for tests of the migrations."""
    yield from _lend(databases, databases.create())


@pytest.fixture(scope="session")
def reused_databases(databases: Databases, migrated_database: str) -> Iterator[Reused]:
    """The databases of `database_url`."""
    reused = Reused(databases, migrated_database)
    yield reused
    reused.close()


@pytest.fixture
def database_url(databases: Databases, reused_databases: Reused) -> Iterator[str]:
    """A migrated database for one test. A connection left open at the end fails the test."""
    url = reused_databases.take(_make_original)
    yield url
    left_open = databases.connections(url)
    if left_open:
        databases.drop(url)
    else:
        reused_databases.give_back(url)
    assert not left_open, f"connections left open: {left_open}"


def _make_original(url: str) -> None:
    """Give a copied database its own identity: services do not act on a recognised copy."""
    from session_service.storage.installation import HERE

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"UPDATE installation SET system_identifier = {HERE}".encode())


def _lend(databases: Databases, url: str) -> Iterator[str]:
    yield url
    left_open = databases.connections(url)
    databases.drop(url)
    assert not left_open, f"connections left open: {left_open}"
