"""Fly's rate limits."""

import asyncio
import time
from dataclasses import replace

import httpx
import pytest

from local.fly.rate_limits import ACTION, DELETE_APP, GET_MACHINE, Rate, RateLimits
from local.fly.settings import Settings
from tests.local.fly.api_client import COUNTER, App, Machine, error_of


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, limits=True)


# Concurrently: on a busy machine a bucket would refill between sequential requests.
async def burst(
    app: App, method: str, path: str, body: object = None
) -> tuple[list[httpx.Response], float]:
    """The replies, and how long they took in s."""
    began = time.monotonic()
    requests = (app.client.send(method, path, body) for _ in range(60))
    return await asyncio.gather(*requests), time.monotonic() - began


def most(rate: Rate, seconds: float) -> float:
    """The most requests that are admitted in such a time, on a machine however busy."""
    return rate.burst + rate.per_second * seconds


def admitted(replies: list[httpx.Response]) -> int:
    limited = [reply for reply in replies if reply.status_code == 429]
    assert limited
    assert all("rate limit exceeded" in error_of(reply)["error"] for reply in limited)
    return len(replies) - len(limited)


async def test_the_fourth_create_in_a_second_is_limited(app: App) -> None:
    """Fly conformance case 75."""
    replies, took = await burst(app, "POST", app.machines, {"config": {"image": COUNTER}})
    assert 3 <= admitted(replies) <= most(ACTION, took)
    assert len(await app.list()) == admitted(replies)


async def test_get_allows_ten_at_once(app: App) -> None:
    """Fly conformance case 75."""
    machine = Machine(app, (await app.create())["id"])
    replies, took = await burst(app, "GET", machine.path)
    assert 10 <= admitted(replies) <= most(GET_MACHINE, took)


async def test_limits_are_apart_by_action_and_by_machine(app: App) -> None:
    first = Machine(app, (await app.create())["id"])
    second = Machine(app, (await app.create())["id"])
    for machine in (first, second):
        replies, _ = await burst(app, "POST", f"{machine.path}/cordon")
        assert admitted(replies) >= 3
        await machine.post("uncordon")


@pytest.mark.parametrize("rate", [ACTION, GET_MACHINE, DELETE_APP])
def test_a_bucket_gives_its_burst_and_then_its_rate(rate: Rate) -> None:
    now = 0.0
    limits = RateLimits(lambda: now)
    assert [limits.allow("a", "m", rate) for _ in range(rate.burst)] == [True] * rate.burst
    assert not limits.allow("a", "m", rate)
    now += 1.001 / rate.per_second
    assert limits.allow("a", "m", rate)
    assert not limits.allow("a", "m", rate)
    now += 3600
    assert [limits.allow("a", "m", rate) for _ in range(rate.burst)] == [True] * rate.burst
    assert not limits.allow("a", "m", rate)


def test_idle_buckets_are_dropped() -> None:
    now = 0.0
    limits = RateLimits(lambda: now)
    for number in range(10_000):
        limits.allow("get", str(number), ACTION)
    now += 61
    limits.allow("get", "one more", ACTION)
    assert len(limits) == 1
