"""Metrics: read by Prometheus's own parsers, right about what was done, and in nobody's way."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from roost.session.v1 import session_pb2 as pb
from session_service import metrics as told
from session_service import scrapes
from session_service.domain.keeping import Action
from session_service.domain.survey import Verdict
from session_service.errors import RECORDED
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import IDLE, due, quiet
from tests.session.harness import World, request_id, world
from tests.session.test_process import NOWHERE, launch, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from prometheus_client.metrics_core import Metric

    from local.fly.emulator import Emulator
    from tests.session.harness import Replica

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that serve metrics."""
    async with world(emulator, database_url, metrics_listen="127.0.0.1:0") as running:
        yield running


async def scrape(replica: Replica, accept: str = "") -> list[Metric]:
    """What the replica tells, parsed."""
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://{replica.running.metrics_target}/metrics"
        answer = await client.get(url, headers={"accept": accept} if accept else {})
    answer.raise_for_status()
    parse = parse_openmetrics if "openmetrics" in answer.headers["content-type"] else parse_text
    assert answer.headers["content-type"].startswith((accept or "text/plain").partition(";")[0])
    return list(parse(answer.text))


async def samples(replica: Replica) -> Samples:
    """Every sample by name and labels."""
    return flat(await scrape(replica))


def flat(families: Iterable[Metric]) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"roost_{name}", frozenset(labels.items())]


async def test_both_parsers_of_prometheus_read_them(roost: World) -> None:
    """The same families in either form; counters, histograms and gauges named as they are."""
    await roost.one.start()
    text = {family.name: family.type for family in await scrape(roost.one)}
    openmetrics = {family.name: family.type for family in await scrape(roost.one, OPENMETRICS)}
    # Times at which series began are OpenMetrics' alone to tell.
    assert {name for name in text if not name.endswith("_created")} == set(openmetrics)
    assert openmetrics["roost_start_duration_seconds"] == "histogram"
    assert openmetrics["roost_start_attempts"] == "counter"
    assert openmetrics["roost_live_sessions"] == "gauge"
    assert "process_cpu_seconds" in openmetrics


async def test_starts_are_counted_by_how_they_were_answered(roost: World) -> None:
    """Created, reused, resumed, joined and replayed; attempts by rung; refusals by reason."""
    one = roost.one
    session = (await one.start("wren")).session
    again = request_id()
    for _ in range(3):
        await one.start("wren", request_id=again)
    await one.pause(session.session_id)
    await asyncio.gather(*(one.start("wren") for _ in range(5)))
    await failing(one.start("wren", mode=pb.START_MODE_FAIL_IF_LIVE))
    await failing(one.get("no id"))
    found = await samples(one)

    def count(outcome_: str, how: str) -> float:
        return value(found, "start_duration_seconds_count", outcome=outcome_, how=how)

    assert count("CREATED", "own") == 1
    assert count("REUSED", "own") + count("RESUMED", "joined") + count("RESUMED", "own") == 6
    assert count("RESUMED", "own") == 1
    assert count("REUSED", "replayed") == 2
    assert value(found, "start_attempts_total", rung="RESUME", result="SUCCEEDED") == 1
    assert value(found, "start_attempts_total", rung="CREATE", result="SUCCEEDED") == 1
    assert value(found, "start_attempts_total", rung="CREATE", result="FAILED") == 0
    method = {"method": "StartSession"}
    assert value(found, "refusals_total", reason="LIVE_SESSION_EXISTS", **method) == 1
    assert value(found, "refusals_total", reason="INVALID_FIELD", method="GetSession") == 1
    total = value(found, "start_duration_seconds_sum", outcome="CREATED", how="own")
    assert 0.01 < total < 15
    slow = {"outcome": "CREATED", "how": "own", "le": "120.0"}
    assert value(found, "start_duration_seconds_bucket", **slow) == 1
    # The other replica did nothing.
    other = await samples(roost.two)
    assert value(other, "start_duration_seconds_count", outcome="CREATED", how="own") == 0


async def test_how_things_stand(roost: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live sessions by state, who waits for whom, what is due: looked at when somebody asks."""
    monkeypatch.setattr(told, "LOOK_EVERY", 0.0)
    first = (await roost.one.start("wren")).session
    await roost.one.pause((await roost.one.start("robin")).session.session_id)
    await due(roost, first)
    found = await samples(roost.two)
    states = {"ACTIVE": 1, "PAUSED": 1, "STARTING": 0, "PAUSING": 0}
    for state, count in states.items():
        assert value(found, "live_sessions", state=state) == count
    assert value(found, "due_sessions") == 1
    assert value(found, "overaged_sessions") == value(found, "orphan_containers") == 0
    assert 0 < value(found, "oldest_live_session_age_seconds") < 60
    assert value(found, "transitions_at_work", place="starts") == 0
    assert value(found, "transitions_waiting", place="creates") == 0
    assert value(found, "database_up") == 1
    used = value(found, "database_connections", state="used")
    assert used + value(found, "database_connections", state="idle") >= 2


async def test_rows_are_not_looked_at_for_each_scrape(roost: World) -> None:
    """However often somebody asks."""
    before = await samples(roost.one)
    assert ("roost_oldest_live_session_age_seconds", frozenset[tuple[str, str]]()) not in before
    await roost.one.start()
    after = await samples(roost.one)
    assert value(after, "live_sessions", state="ACTIVE") == 0
    # What the replica counts by itself is as it is now.
    assert value(after, "start_duration_seconds_count", outcome="CREATED", how="own") == 1


async def test_passes_of_keeper_and_sweeper_are_counted(
    emulator: Emulator, database_url: str
) -> None:
    """By what they did, in the loops that do it."""
    async with world(
        emulator,
        database_url,
        replicas=1,
        metrics_listen="127.0.0.1:0",
        idle_timeout=IDLE,
        keeper_interval=timedelta(seconds=0.1),
        sweep_interval=timedelta(seconds=0.2),
    ) as running:
        session = (await running.one.start()).session
        await quiet(running, session)

        async def counted() -> bool:
            found = await samples(running.one)
            return (
                value(found, "keeper_actions_total", action="PAUSE") == 1
                and value(found, "keeper_pass_seconds_count") >= 1
                and value(found, "sweeper_passes_total") >= 2
                and value(found, "sweeper_listed_containers_total") >= 1
            )

        assert await eventually(counted)


async def test_no_label_names_anybody(roost: World) -> None:
    """Words of small sets only: no session, no user, no project, no app."""
    await roost.one.start("a-user-of-ours")
    await failing(roost.one.start("a-user-of-ours", mode=pb.START_MODE_FAIL_IF_LIVE))
    words = {
        label
        for family in await scrape(roost.one)
        for sample in family.samples
        for name, label in sample.labels.items()
        if name != "le"
    }
    assert words <= {
        *("REUSED", "RESUMED", "RESTARTED", "RESTORED", "CREATED", "own", "joined", "replayed"),
        *("LIVE", "RESUME", "RESTART", "RESTORE", "CREATE", "SUCCEEDED", "DEGRADED", "FAILED"),
        *("starts", "background", "creates", "used", "idle", "StartSession"),
        *("ACTIVE", "PAUSED", "STARTING", "PAUSING"),
        *(str(action) for action in Action),
        *(str(verdict) for verdict in Verdict),
        *RECORDED,
    }


async def ask(target: str, request: bytes) -> bytes:
    """What is answered to these very bytes."""
    host, _, port = target.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        # Hung up on while there was more to be read.
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b""),
    ],
)
async def test_whatever_is_asked_is_answered(roost: World, request_: bytes, status: bytes) -> None:
    """Or hung up on; and the next one is answered again."""
    target = roost.one.running.metrics_target
    answer = await ask(target, request_)
    assert answer[9:12] == status
    if request_.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")
    assert await scrape(roost.one)


async def test_who_sends_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; and so many at once get no more than a hang-up."""
    monkeypatch.setattr(scrapes, "SECONDS", 0.2)

    async def render(accept: str) -> tuple[bytes, str]:
        return b"x 1\n", "text/plain"

    async with scrapes.serving("127.0.0.1:0", render) as target:
        answers = await asyncio.gather(*(ask(target, b"GET /met") for _ in range(40)))
        assert answers == [b""] * 40
        assert (await ask(target, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"x 1\n")


async def test_a_fault_while_rendering_ends_that_scrape_only() -> None:
    """It is logged, and the next one is answered."""
    faults = iter([True, False])

    async def render(accept: str) -> tuple[bytes, str]:
        if next(faults):
            raise ZeroDivisionError
        return b"x 1\n", "text/plain"

    async with scrapes.serving("127.0.0.1:0", render) as target:
        assert await ask(target, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert (await ask(target, b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(b"x 1\n")


async def test_a_taken_address_is_one_clear_line(database_url: str) -> None:
    """Exit status 2, naming the variable."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await launch(
            ROOST_DATABASE_URL=database_url,
            ROOST_SESSION_LISTEN="127.0.0.1:0",
            ROOST_METRICS_LISTEN=address,
        )
        status, _, err = await outcome(process)
    assert status == 2
    assert f"ROOST_METRICS_LISTEN: {address} cannot be served on" in err
    assert "Traceback" not in err


async def test_a_wrong_address_is_one_clear_line() -> None:
    process = await launch(ROOST_DATABASE_URL=NOWHERE, ROOST_METRICS_LISTEN="9090")
    assert await outcome(process) == (
        2,
        "",
        "session_service: ROOST_METRICS_LISTEN: '9090' is not host:port\n",
    )


async def test_without_an_address_nothing_is_counted_or_served(
    emulator: Emulator, database_url: str
) -> None:
    """Off by default."""
    async with world(emulator, database_url, replicas=1) as running:
        assert running.one.running.metrics_target == ""
        assert (await running.one.start()).outcome == pb.START_OUTCOME_CREATED


async def test_metrics_are_told_without_a_database(
    roost: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but what only its rows say."""
    monkeypatch.setattr(told, "LOOK_EVERY", 0.0)
    await roost.one.running.database.pool.close()
    found = await samples(roost.one)
    assert value(found, "database_up") == 0
    assert ("roost_due_sessions", frozenset[tuple[str, str]]()) not in found
    with pytest.raises(grpc.aio.AioRpcError):
        await roost.one.start()
    found = await samples(roost.one)
    reason = {"method": "StartSession", "reason": "STORAGE_UNAVAILABLE"}
    assert value(found, "refusals_total", **reason) == 1
