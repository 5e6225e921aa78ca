"""Fly's rate limits."""

from dataclasses import replace

import pytest

from local.fly.limits import ACTION, DELETE_APP, GET_MACHINE, Limits, Rate
from local.fly.settings import Settings
from tests.local.fly.wire_client import COUNTER, App, Machine, error_of


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, limits=True)


async def test_the_fourth_create_in_a_second_is_limited(app: App) -> None:
    """Fly conformance case 75."""
    body = {"config": {"image": COUNTER}}
    replies = [await app.client.send("POST", app.machines, body) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert "rate limit exceeded" in error_of(replies[-1])["error"]
    assert len(await app.list()) == 3


async def test_get_allows_ten_at_once(app: App) -> None:
    """Fly conformance case 75."""
    machine = Machine(app, (await app.create())["id"])
    statuses = [(await app.client.send("GET", machine.path)).status_code for _ in range(12)]
    assert statuses[:10] == [200] * 10
    assert 429 in statuses[10:]


async def test_limits_are_apart_by_action_and_by_machine(app: App) -> None:
    first = Machine(app, (await app.create())["id"])
    second = Machine(app, (await app.create())["id"])
    for machine in (first, second):
        for _ in range(3):
            await machine.post("cordon")
        await machine.post("cordon", status=429)
        await machine.post("uncordon")


@pytest.mark.parametrize("rate", [ACTION, GET_MACHINE, DELETE_APP])
def test_a_bucket_gives_its_burst_and_then_its_rate(rate: Rate) -> None:
    now = 0.0
    limits = Limits(lambda: now)
    assert [limits.admits("a", "m", rate) for _ in range(rate.burst)] == [True] * rate.burst
    assert not limits.admits("a", "m", rate)
    now += 1.001 / rate.per_second
    assert limits.admits("a", "m", rate)
    assert not limits.admits("a", "m", rate)
    now += 3600
    assert [limits.admits("a", "m", rate) for _ in range(rate.burst)] == [True] * rate.burst
    assert not limits.admits("a", "m", rate)


def test_idle_buckets_are_forgotten() -> None:
    now = 0.0
    limits = Limits(lambda: now)
    for number in range(10_000):
        limits.admits("get", str(number), ACTION)
    now += 61
    limits.admits("get", "one more", ACTION)
    assert len(limits) == 1
