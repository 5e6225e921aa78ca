"""Metrics: Prometheus's own parsers read them, and their values are right."""

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

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.domain.inventory import Verdict
from session_service.domain.next_action import Action
from session_service.domain.session import EndReason
from session_service.errors import RECORDED
from session_service.metrics.prometheus import LOOPS, Metrics
from tests.cases import each
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.ageing import IDLE, make_due, make_idle
from tests.session.harness import TIMEOUT, World, request_id, world
from tests.session.test_choices import offered, policies
from tests.session.test_process import NOWHERE, launch, outcome
from tests.session.test_stats import by_outcome, figures_of, rungs
from tests.unit.test_exporter import ask

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


@pytest.fixture
async def fresh(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that read the gauges from the database at every scrape."""
    async with world(
        emulator,
        database_url,
        metrics_listen="127.0.0.1:0",
        gauges_interval=timedelta(0),
    ) as running:
        yield running


async def scrape(replica: Replica, accept: str = "") -> list[Metric]:
    """The replica's metrics, parsed."""
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
    """Both formats have the same families, with the right types."""
    await roost.one.start()
    text = {family.name: family.type for family in await scrape(roost.one)}
    openmetrics = {family.name: family.type for family in await scrape(roost.one, OPENMETRICS)}
    # In the text format `_created` series are families of their own; in OpenMetrics they are not.
    assert {name for name in text if not name.endswith("_created")} == set(openmetrics)
    assert openmetrics["roost_start_duration_seconds"] == "histogram"
    assert openmetrics["roost_start_attempts"] == "counter"
    assert openmetrics["roost_live_sessions"] == "gauge"
    assert "process_cpu_seconds" in openmetrics


async def test_starts_are_counted_by_outcome(roost: World) -> None:
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
    assert 0.01 < total < 120
    slow = {"outcome": "CREATED", "how": "own", "le": "120.0"}
    assert value(found, "start_duration_seconds_bucket", **slow) == 1
    # The other replica did nothing.
    other = await samples(roost.two)
    assert value(other, "start_duration_seconds_count", outcome="CREATED", how="own") == 0


async def test_the_metrics_of_the_five_statistics_equal_get_session_stats(roost: World) -> None:
    """Summed over replicas: starts by outcome, attempts (those of failed starts and of the service
    itself included), lifetimes, and choices.
    """
    one, two = roost.one, roost.two
    await roost.admin.set_fault("capacity", action="create", times=1)
    await failing(one.start("robin", mode=pb.START_MODE_FRESH))
    await one.start("robin")
    again = request_id()
    for replica in (one, two):
        await replica.start("robin", request_id=again)
    asks = pb.Policy(persistence=pb.Policy.PERSISTENCE_ASK)
    request = policy_pb.UpdateProjectPolicyRequest(project_id="nest", policy=asks)
    await policies(roost).UpdateProjectPolicy(request, timeout=TIMEOUT)
    await one.stop((await two.start("wren")).session.session_id)
    token = (await offered(one.start("wren")))[rpc_pb.CHOICE_CONTINUE].choice_token
    await two.start("wren", choice_token=token)
    # The session runs: this choice is an answer that begins no work.
    token = (await offered(one.start("wren")))[rpc_pb.CHOICE_CONTINUE].choice_token
    await two.start("wren", choice_token=token)
    token = (await offered(one.start("wren")))[rpc_pb.CHOICE_FRESH].choice_token
    first = (await two.start("wren", choice_token=token, remember=True)).session
    second = (await one.start("wren")).session
    await roost.until_state(first.session_id, pb.Session.STATE_ENDED)
    await two.end(second.session_id)
    # A second end, which purges the session, does not count.
    await two.end(second.session_id, now=True)

    async def equal() -> bool:
        # The first session of wren ends after the answer that replaced it.
        stats = await figures_of(one)
        both = [await samples(replica) for replica in (one, two)]
        found = {key: sum(each.get(key, 0) for each in both) for key in {*both[0], *both[1]}}

        def total(name: str, **labels: str) -> float:
            wanted = set(labels.items())
            return sum(v for (n, has), v in found.items() if n == f"roost_{name}" and wanted <= has)

        starts = "start_duration_seconds_count"
        for outcome_, number in by_outcome(stats).items():
            assert total(starts, how="own", outcome=outcome_) == number
        assert total(starts, how="own") == stats.start_count
        assert total(starts, how="replayed") == stats.replay_count == 1
        for rung, (tried, succeeded, degraded) in rungs(stats).items():
            assert total("start_attempts_total", rung=rung) == tried
            attempts = (total("start_attempts_total", rung=rung, result=result)
                        for result in ("SUCCEEDED", "DEGRADED"))  # fmt: skip
            assert tuple(attempts) == (succeeded, degraded)
        assert total("start_attempts_total", result="FAILED") == 1
        assert total("choices_total", choice="CONTINUE", source="user") == 2
        assert stats.chose_continue_count == 2
        assert total("choices_total", choice="FRESH", source="user") == stats.chose_new_count == 1
        by_preference = total("choices_total", choice="FRESH", source="preference")
        assert by_preference == stats.auto_new_count == 1
        ended = sum(stats.end_counts.values())
        if (ended, total("session_lifetime_seconds_count")) != (3, 3):
            return False
        average = total("session_lifetime_seconds_sum") / ended
        lifetime = stats.average_lifetime.ToTimedelta().total_seconds()
        # The answer has whole microseconds.
        assert average == pytest.approx(lifetime, abs=1e-6)
        return True

    assert await eventually(equal)


async def test_gauges_show_the_installation(fresh: World) -> None:
    """Live sessions by state, running and waiting transitions, due sessions, connections."""
    roost = fresh
    first = (await roost.one.start("wren")).session
    await roost.one.pause((await roost.one.start("robin")).session.session_id)
    await make_due(roost, first)
    found = await samples(roost.two)
    states = {"ACTIVE": 1, "PAUSED": 1, "STARTING": 0, "PAUSING": 0}
    for state, count in states.items():
        assert value(found, "live_sessions", state=state) == count
    assert value(found, "due_sessions") == 1
    assert value(found, "overaged_sessions") == value(found, "orphan_containers") == 0
    assert 0 < value(found, "oldest_live_session_age_seconds") < 60
    assert value(found, "transitions_running", limit="starts") == 0
    assert value(found, "transitions_waiting", limit="creates") == 0
    assert value(found, "database_up") == 1
    used = value(found, "database_connections", state="used")
    assert used + value(found, "database_connections", state="idle") >= 2


async def test_rows_are_not_read_for_each_scrape(emulator: Emulator, database_url: str) -> None:
    """Gauges from the database are read once in `gauges_interval`, however often it is scraped."""
    served = {"metrics_listen": "127.0.0.1:0", "gauges_interval": timedelta(hours=1)}
    async with world(emulator, database_url, 1, **served) as roost:
        await _check_that_rows_are_not_read(roost)


async def _check_that_rows_are_not_read(roost: World) -> None:
    before = await samples(roost.one)
    assert ("roost_oldest_live_session_age_seconds", frozenset[tuple[str, str]]()) not in before
    await roost.one.start()
    after = await samples(roost.one)
    assert value(after, "live_sessions", state="ACTIVE") == 0
    # Counters of the replica itself are current.
    assert value(after, "start_duration_seconds_count", outcome="CREATED", how="own") == 1


async def test_passes_of_reconciler_and_sweep_are_counted(
    emulator: Emulator, database_url: str
) -> None:
    """By action, in the background loops."""
    async with world(
        emulator,
        database_url,
        replicas=1,
        metrics_listen="127.0.0.1:0",
        idle_timeout=IDLE,
        reconcile_interval=timedelta(seconds=0.1),
        sweep_interval=timedelta(seconds=0.2),
    ) as running:
        session = (await running.one.start()).session
        await make_idle(running, session)

        async def counted() -> bool:
            found = await samples(running.one)
            return (
                value(found, "reconcile_actions_total", action="PAUSE") == 1
                and value(found, "reconcile_pass_seconds_count") >= 1
                and value(found, "sweep_passes_total") >= 2
                and value(found, "sweep_listed_containers_total") >= 1
            )

        assert await eventually(counted)


async def test_no_label_names_a_user(roost: World) -> None:
    """Label values are from small fixed sets: no session, user, project or app."""
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
        *("CONTINUE", "FRESH", "RESTORE", "user", "preference"),
        *LOOPS,
        *(str(reason) for reason in EndReason),
        *("ACTIVE", "PAUSED", "STARTING", "PAUSING"),
        *(str(action) for action in Action),
        *(str(verdict) for verdict in Verdict),
        *RECORDED,
    }


@each(
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
async def test_every_request_is_answered(roost: World, request_: bytes, status: bytes) -> None:
    """Or its connection is closed; the next request is answered again."""
    target = roost.one.running.metrics_target
    answer = await ask(target, request_)
    assert answer[9:12] == status
    if request_.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")
    assert await scrape(roost.one)


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


async def test_metrics_are_served_without_a_database(fresh: World) -> None:
    """All metrics but the gauges that are read from the database."""
    roost = fresh
    await roost.one.running.database.pool.close()
    found = await samples(roost.one)
    assert value(found, "database_up") == 0
    assert ("roost_due_sessions", frozenset[tuple[str, str]]()) not in found
    with pytest.raises(grpc.aio.AioRpcError):
        await roost.one.start()
    found = await samples(roost.one)
    reason = {"method": "StartSession", "reason": "STORAGE_UNAVAILABLE"}
    assert value(found, "refusals_total", **reason) == 1


async def test_a_metric_that_cannot_be_counted_fails_no_call(
    roost: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands: its work is carried out, its call is answered, and the log says why."""

    def broken(*_: object) -> None:
        raise RuntimeError("no such label")

    monkeypatch.setattr(Metrics, "committed", broken)
    session = (await roost.one.start()).session
    assert session.state == pb.Session.STATE_ACTIVE
    assert await roost.committed("create") == 1
    assert "RuntimeError: no such label" in caplog.text
