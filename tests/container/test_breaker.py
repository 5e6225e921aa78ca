"""Retry budget, backoff and circuit breaker: by arithmetic, over a scripted network, over Fly."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_service.container import ContainerRef, ContainerState
from container_service.deadlines import Deadline
from container_service.errors import (
    CircuitOpen,
    ContainerNotFound,
    OutcomeUnknown,
    ProviderUnavailable,
)
from container_service.fly.breaker import Breaker, Tolerance
from container_service.fly.budget import (
    BURST,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    TRICKLE,
    RetryBudget,
    backoff,
)
from container_service.fly.client import FlyClient, open_client
from container_service.fly.transport import Call
from container_service.fly.weather import SPREAD, SWEEP_ABOVE, TIME_ENOUGH, Weather
from container_service.outages import OUTAGE_SECONDS, Silence
from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import APP, failing, serving
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.container.harness import Service

FIVE = Tolerance(failures=5)


def get(machine: str, app: str = "birds") -> Call:
    return Call("get", machine, "GET", f"apps/{app}/machines/{machine}", repeatable=True)


def broken(now: float = 100.0, tolerance: Tolerance = FIVE) -> Breaker:
    """A breaker whose circuit has just opened."""
    breaker = Breaker(tolerance)
    opened = [breaker.failed(f"m{n}", now, now) for n in range(tolerance.failures)]
    assert opened == [False] * (tolerance.failures - 1) + [True]
    return breaker


# --- budget and backoff ------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200), st.floats(0, 1))
def test_repeats_stay_a_part_of_the_answers(
    history: list[tuple[bool, float]], ratio: float
) -> None:
    budget, now, repeats, answers = RetryBudget.full(ratio, 0.0), 0.0, 0, 0
    for answered, pause in history:
        now += pause
        if answered:
            budget.earn(now)
            answers += 1
        else:
            repeats += budget.spend(now)
        assert repeats <= BURST + ratio * answers + TRICKLE * now + 1e-6


def test_a_spent_budget_comes_back_with_answers_and_with_time() -> None:
    budget = RetryBudget.full(0.5, 0.0)
    assert [budget.spend(0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    budget.earn(0.0)
    assert not budget.spend(0.0)
    budget.earn(0.0)
    assert budget.spend(0.0)
    assert not budget.spend(0.0)
    assert budget.spend(1 / TRICKLE)
    assert not budget.is_full(1 / TRICKLE)
    assert budget.is_full(1e6)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_pause_is_of_full_jitter_and_bounded(attempt: int, draw: float) -> None:
    pause = backoff(attempt, draw)
    assert 0 <= pause <= LONGEST_PAUSE
    assert backoff(attempt, 0.0) == 0.0
    assert backoff(1, draw) == draw * FIRST_PAUSE
    assert backoff(attempt + 1, draw) in (LONGEST_PAUSE * draw, 2 * pause)


# --- breaker, by arithmetic --------------------------------------------------------------------


def test_many_failures_of_one_machine_open_nothing() -> None:
    breaker = Breaker(FIVE)
    assert not any(breaker.failed("m", 100 + n / 10, 100 + n / 10) for n in range(1000))
    assert breaker.admit(201.0) == 0.0


def test_an_answer_in_between_begins_the_row_anew() -> None:
    breaker = Breaker(FIVE)
    for n in range(4):
        assert not breaker.failed(f"m{n}", 100.0, 100.1)
    breaker.answered(100.2, 100.3)
    for n in range(4):
        assert not breaker.failed(f"m{n}", 100.4, 100.5)
    assert breaker.failed("m4", 100.4, 100.5)


def test_failures_far_apart_are_no_row() -> None:
    breaker = Breaker(FIVE)
    assert not any(breaker.failed(f"m{n}", 3.0 * n, 3.0 * n) for n in range(100))


def test_an_open_circuit_lets_one_probe_through_in_each_spell() -> None:
    breaker = broken(100.0)
    assert breaker.admit(100.5) == 0.5
    assert breaker.admit(101.0) == 0.0
    assert breaker.admit(101.0) == 1.0
    assert breaker.admit(102.0) == 0.0
    closing = breaker.answered(102.0, 102.1)
    assert closing is not None
    assert (closing.probes, closing.held_back) == (2, 2)
    assert closing.silent == pytest.approx(2.1)
    assert breaker.admit(102.1) == 0.0
    assert not breaker.is_open


def test_an_answer_to_an_older_question_closes_nothing() -> None:
    """A wait that was sent before the trouble may come back in the middle of it."""
    breaker = broken(100.0)
    assert breaker.answered(99.9, 100.5) is None
    assert breaker.is_open
    # Nor does it clear what failed after it was asked.
    other = Breaker(FIVE)
    for n in range(4):
        other.failed(f"m{n}", 100.0, 100.1)
    other.answered(99.0, 100.2)
    assert other.failed("m4", 100.0, 100.3)


def test_a_failure_of_a_question_from_before_the_last_answer_is_old_news() -> None:
    """Time-outs of calls that were sent into an outage come in when it is long over."""
    breaker = Breaker(FIVE)
    breaker.answered(120.0, 120.1)
    assert not any(breaker.failed(f"m{n}", 100.0, 130.0) for n in range(60))


@given(st.floats(0, 10_000), st.floats(0.001, 20))
def test_a_long_outage_costs_few_probes(lasts: float, asks_every: float) -> None:
    """At most one a second in the first seconds, then ever more rarely down to one in ten."""
    breaker, begun = broken(0.0), 0.0
    lasts = min(lasts, 2000 * asks_every)
    now, probes = 0.0, []
    while now <= lasts:
        if breaker.admit(now) == 0.0:
            probes.append(now)
            breaker.failed("m", now, now)
        now += asks_every
    for one, other in itertools.pairwise(probes):
        assert other - one >= FIVE.spell(one - begun) - 1e-6
    assert len(probes) <= 4 + 12 + lasts / FIVE.longest


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["admit", "failed", "answered"]),
        st.integers(0, 7),
        st.floats(0, 30),
        st.floats(0, 40),
    ),
    max_size=80,
)


@given(MOVES)
def test_whatever_happens_it_never_wedges(moves: list[tuple[str, int, float, float]]) -> None:
    """Total over any history; and from any state, answers let everything through again."""
    breaker, now = Breaker(FIVE), 0.0
    for move, machine, pause, age in moves:
        now += pause
        match move:
            case "admit":
                delay = breaker.admit(now)
                assert 0 <= delay <= FIVE.longest
                assert not delay or breaker.is_open
            case "failed":
                breaker.failed(f"m{machine}", now - age, now)
            case _:
                breaker.answered(now - age, now)
    now += FIVE.longest
    assert breaker.admit(now) == 0.0
    breaker.answered(now, now)
    assert not breaker.is_open
    assert breaker.is_idle(now)


def test_a_short_outage_is_over_for_the_breaker_before_a_watchers_patience() -> None:
    """The two are one idea: who bears with 5 s of silence must hear of the end in them."""
    breaker, patience = broken(0.0), OUTAGE_SECONDS
    probes = [t / 100 for t in range(int(patience * 100)) if breaker.admit(t / 100) == 0.0]
    gaps = [later - sooner for sooner, later in itertools.pairwise([0.0, *probes])]
    assert max(gaps) <= 1.3
    assert FIVE.spell(patience) <= 1.3


def test_silence_counts_from_when_the_circuit_heard_nothing() -> None:
    silence = Silence()
    assert not silence.too_long(ProviderUnavailable("503"))
    assert not silence.too_long(CircuitOpen("", silent=4.0, retry_after=1.0))
    assert silence.too_long(CircuitOpen("", silent=5.1, retry_after=1.0))
    assert silence.too_long(ProviderUnavailable("503"))
    silence.broken()
    assert not silence.too_long(ProviderUnavailable("503"))


# --- what counts -------------------------------------------------------------------------------


def opened_by(note: Callable[[Weather, int], None], now: float) -> bool:
    """Whether fifty such notes at `now` hold the next call back."""
    weather = Weather(tolerance=FIVE)
    for n in range(50):
        note(weather, n)
    try:
        weather.check(get("other"), now)
    except CircuitOpen:
        return True
    return False


def long(action: str, n: int) -> Call:
    path = f"apps/birds/machines/m{n}/{action}"
    return Call(action, f"m{n}", "POST", path, long=True)


def test_time_outs_count_where_there_was_time_enough() -> None:
    soon = 100.0 + TIME_ENOUGH
    assert opened_by(lambda w, n: w.timed_out(get(f"m{n}"), 100.0, soon), soon)
    assert not opened_by(lambda w, n: w.timed_out(get(f"m{n}"), 100.0, 100.3), 100.3)
    assert not opened_by(lambda w, n: w.timed_out(long("wait", n), 100.0, 130.0), 130.0)


def test_what_becomes_of_execs_is_the_guests_affair() -> None:
    assert not opened_by(lambda w, n: w.lost(long("exec", n), 100.0, 100.1), 100.1)
    assert opened_by(lambda w, n: w.lost(long("wait", n), 100.0, 100.1), 100.1)


def test_apps_are_apart_and_quiet_ones_are_dropped() -> None:
    weather = Weather(tolerance=FIVE)
    for n in range(10):
        weather.lost(get(f"m{n}", "birds"), 100.0, 100.1)
    with pytest.raises(CircuitOpen) as held_back:
        weather.admit(get("m", "birds"), 100.2)
    left = 1.0 - 0.1
    assert left <= held_back.value.retry_after <= left + SPREAD
    weather.admit(get("m", "fish"), 100.2)
    for number in range(3 * SWEEP_ABOVE):
        weather.admit(get("m", f"app{number}"), 100.3)
    assert len(weather) <= SWEEP_ABOVE + 1
    with pytest.raises(CircuitOpen):
        weather.admit(get("m", "birds"), 100.4)


# --- over a scripted network -------------------------------------------------------------------


class Sea:
    """A network that answers what it is told to, and counts by machine."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer = answer
        self.seen = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """One answer."""
        self.seen += 1
        return self.answer(request)


def told(status: int, error: str = "x") -> Callable[[httpx.Request], httpx.Response]:
    """Fly's own envelope."""
    return lambda _: httpx.Response(status, json={"error": error})


def up(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"id": "m", "state": "started"})


def refuse(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def kinds(fly: FlyClient, count: int, app: str = "birds") -> list[str]:
    """Get so many machines one after another; which way each ended."""
    ends = []
    for n in range(count):
        try:
            await fly.get(ContainerRef(app, f"m{n}"), Deadline.after(10))
            ends.append("ok")
        except Exception as error:  # noqa: BLE001  # its kind is what is looked at
            ends.append(type(error).__name__)
    return ends


@pytest.mark.parametrize("trouble", [told(503), told(500), told(502), refuse])
async def test_an_outage_is_told_without_a_call_and_its_end_is_found(
    trouble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sea = Sea(trouble)
    transport = httpx.MockTransport(sea)
    weather = Weather(tolerance=Tolerance(failures=5, shortest=0.3))
    async with open_client("http://fly.test", "t", 1.0, transport, weather) as (fly, _):
        # The repeat of the fifth is the first that is held back.
        assert await kinds(fly, 5) == ["ProviderUnavailable"] * 4 + ["CircuitOpen"]
        sent = sea.seen
        # Repeats were spent until the budget was empty, no more.
        assert sent <= 5 + BURST
        begun = time.monotonic()
        assert await kinds(fly, 100) == ["CircuitOpen"] * 100
        assert time.monotonic() - begun < 0.3
        assert sea.seen == sent
        # Another app has its own circuit.
        sea.answer = up
        assert await kinds(fly, 1, "fish") == ["ok"]
        assert await kinds(fly, 1) == ["CircuitOpen"]
        await asyncio.sleep(0.35)
        assert await kinds(fly, 9) == ["ok"] * 9
    lines = [
        record.getMessage() for record in caplog.records if "circuit" in vars(record)["action"]
    ]
    assert "does not answer for birds: 5 machines" in lines[0]
    assert "answers for birds again" in lines[1]
    assert "1 probes were sent and 102 calls held back" in lines[1]


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (told(404, "machine not found"), "ContainerNotFound"),
        (told(409, "machine is replacing"), "NotStartableYet"),
        (told(412, "failed_precondition: x"), "StateConflict"),
        (told(422, "x"), "Malformed"),
        (told(401, "x"), "ProviderRefused"),
        (told(408, "deadline_exceeded: upstream"), "ProviderUnavailable"),
        (lambda _: httpx.Response(404, text="nobody here"), "ProviderUnavailable"),
    ],
)
async def test_refusals_open_nothing(answer: Any, end: str) -> None:
    transport = httpx.MockTransport(Sea(answer))
    async with open_client("http://fly.test", "t", transport=transport) as (fly, _):
        assert await kinds(fly, 30) == [end] * 30


async def test_one_bad_machine_among_good_ones_opens_nothing() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return told(502)(request) if "/m3" in request.url.path else up(request)

    transport = httpx.MockTransport(Sea(answer))
    async with open_client("http://fly.test", "t", 100.0, transport) as (fly, _):
        for _ in range(20):
            ends = await kinds(fly, 6)
            assert ends == ["ok"] * 3 + ["ProviderUnavailable"] + ["ok"] * 2


async def test_a_change_that_may_be_done_stays_so_when_the_circuit_opens() -> None:
    """Its repeat was held back: that says nothing of what was sent before."""
    weather = Weather(tolerance=Tolerance(failures=2, shortest=60, longest=60))
    transport = httpx.MockTransport(Sea(told(504)))
    async with open_client("http://fly.test", "t", 1.0, transport, weather) as (fly, _):
        assert await kinds(fly, 1) == ["ProviderUnavailable"]
        with pytest.raises(OutcomeUnknown):
            await fly.set_cordoned(
                ContainerRef("birds", "m9"), "", Deadline.after(9), cordoned=True
            )
        with pytest.raises(CircuitOpen) as held_back:
            await fly.start(ContainerRef("birds", "m9"), "", Deadline.after(9))
        assert not isinstance(held_back.value, OutcomeUnknown)


async def test_half_the_answers_missing_cost_few_repeats() -> None:
    """Not an outage, only bad weather: repeats stay a tenth of the answers, and the burst."""
    dice = random.Random(7)
    sea = Sea(lambda request: up(request) if dice.random() < 0.5 else told(503)(request))
    transport, begun = httpx.MockTransport(sea), time.monotonic()
    weather = Weather(0.1, Tolerance(failures=50))
    async with open_client("http://fly.test", "t", 1.0, transport, weather) as (fly, _):
        ends = [end for _ in range(10) for end in await kinds(fly, 12)]
    came_in = TRICKLE * (time.monotonic() - begun)
    assert sea.seen - len(ends) <= BURST + 0.1 * ends.count("ok") + came_in
    assert sea.seen - len(ends) >= BURST


# --- over the emulator -------------------------------------------------------------------------


async def test_an_open_circuit_is_unavailable_with_a_time_to_come_back(service: Service) -> None:
    """Never NOT_FOUND and never a state: nothing is said of any container."""
    container_id = await service.create()
    missing = [f"{n:014x}" for n in range(8)]
    await service.admin.set_fault("unavailable")
    await asyncio.gather(*(failing(_get(service, other)) for other in missing))
    mark = await service.mark()
    for _ in range(20):
        failed = await failing(_get(service, container_id))
        assert failed.reason == "PROVIDER_UNAVAILABLE"
        assert failed.retry_seconds is not None
        assert 0 < failed.retry_seconds < 3
    assert len(await service.requests(mark)) <= 1
    await service.admin.clear_faults()

    async def answers() -> bool:
        return await _state(service, container_id) is not None

    await eventually(answers, timeout=2.5)


@pytest.mark.parametrize("slow", ["start", "wait"])
async def test_a_start_under_way_goes_on_when_the_circuit_closes(
    service: Service, slow: str
) -> None:
    """It was accepted when the circuit opened: its wait and its proof come after."""
    container_id = await service.create()
    seen = await service.stub.ExecContainer(
        pb.ExecContainerRequest(
            container_id=container_id, command=["cat", "/proc/sys/kernel/random/boot_id"]
        ),
        timeout=9,
    )
    await service.stub.SuspendContainer(
        pb.SuspendContainerRequest(container_id=container_id), timeout=20
    )
    fault = await service.admin.set_fault("slow_after", action=slow, delay_ms=700)
    resuming = asyncio.ensure_future(
        service.stub.ResumeContainer(
            pb.ResumeContainerRequest(
                container_id=container_id, expected_boot_id=seen.stdout.strip()
            ),
            timeout=20,
        )
    )

    async def accepted() -> bool:
        return await service.admin.fired(fault) > 0

    await eventually(accepted, interval=0.005)
    await service.admin.set_fault("server_error", action="get", for_ms=900)
    await asyncio.gather(*(failing(_get(service, f"{n:014x}")) for n in range(8)))
    mark = await service.mark()
    answer = await resuming
    assert answer.memory_preserved == pb.MEMORY_PRESERVED_YES
    assert "start" not in await service.requests(mark)


async def test_a_start_that_an_outage_swallowed_is_asked_for_again_soon_after(
    service: Service,
) -> None:
    """Its polls failed for a while: the next ones are short again, for it may not have begun."""
    container_id = await service.create()
    await service.stub.SuspendContainer(
        pb.SuspendContainerRequest(container_id=container_id), timeout=20
    )
    await service.admin.set_fault("server_error", action="start")
    await service.admin.set_fault("server_error", action="wait", for_ms=3000)
    begun = time.monotonic()
    request = pb.ResumeContainerRequest(container_id=container_id)
    answer = await service.stub.ResumeContainer(request, timeout=20)
    assert answer.container.state == pb.CONTAINER_STATE_STARTED
    assert time.monotonic() - begun < 7


async def test_one_app_away_leaves_the_other_alone(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("unavailable", app="elsewhere")
    lost = [
        failing(service.stub.GetContainer(pb.GetContainerRequest(app="elsewhere", container_id=m)))
        for m in (f"{n:014x}" for n in range(8))
    ]
    assert {failed.reason for failed in await asyncio.gather(*lost)} == {"PROVIDER_UNAVAILABLE"}
    assert await _state(service, container_id) == pb.CONTAINER_STATE_STARTED


async def test_the_figures_come_from_the_configuration(service: Service) -> None:
    async with serving(service.emulator, fly_breaker_failures=2, fly_retry_ratio=0.0) as quick:
        await quick.admin.set_fault("unavailable")
        for n in range(2):
            await failing(_get(quick, f"{n:014x}"))
        mark = await quick.mark()
        await failing(_get(quick, f"{9:014x}"))
        assert await quick.requests(mark) == []


def _get(service: Service, container_id: str) -> Any:
    request = pb.GetContainerRequest(app=APP, container_id=container_id)
    return service.stub.GetContainer(request, timeout=9)


async def _state(service: Service, container_id: str) -> pb.ContainerState.ValueType | None:
    try:
        state: pb.ContainerState.ValueType = (await _get(service, container_id)).container.state
    except Exception:  # noqa: BLE001  # not yet
        return None
    return state


def test_not_found_is_still_not_found() -> None:
    """An open circuit is another kind of error than the one that loss is read from."""
    assert not issubclass(CircuitOpen, ContainerNotFound | OutcomeUnknown)
    assert ContainerState.DESTROYED not in vars(CircuitOpen("", silent=1, retry_after=1)).values()
