"""Outages of the provider, over a scripted network and over the emulator."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import (
    CircuitOpen,
    OutcomeUnknown,
)
from container_service.containers.model import ContainerRef
from container_service.fly.app_health import RETRY_SPREAD, AppHealthRegistry
from container_service.fly.circuit_breaker import BreakerSettings
from container_service.fly.client import FlyClient, open_client
from container_service.fly.retry_budget import (
    BURST,
    REFILL_PER_SECOND,
)
from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import APP, failing, serving
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.container.harness import Service

#: Until the first probe, in s: longer than the test.
PROBE_SECONDS = 600.0


class Clock:
    """The clock of the transport, which can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        """The time, in s."""
        return time.monotonic() + self.ahead


# --- over a scripted network -------------------------------------------------------------------


class ScriptedNetwork:
    """A network whose answers come from a function; counts the requests."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer = answer
        self.seen = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.seen += 1
        return self.answer(request)


def fly_error(status: int, error: str = "x") -> Callable[[httpx.Request], httpx.Response]:
    """An error response in Fly's format."""
    return lambda _: httpx.Response(status, json={"error": error})


def started(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"id": "m", "state": "started"})


def refuse_connection(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def outcomes(fly: FlyClient, count: int, app: str = "birds") -> list[str]:
    """Read `count` different machines one after another; the outcome of each."""
    ends = []
    for n in range(count):
        try:
            await fly.get(ContainerRef(app, f"m{n}"), Deadline.after(30))
            ends.append("ok")
        except Exception as error:  # noqa: BLE001  # the test compares the kinds of the errors
            ends.append(type(error).__name__)
    return ends


@pytest.mark.parametrize(
    "trouble", [fly_error(503), fly_error(500), fly_error(502), refuse_connection]
)
async def test_in_an_outage_calls_fail_unsent_and_a_probe_finds_its_end(
    trouble: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, network = Clock(), ScriptedNetwork(trouble)
    monkeypatch.setattr("container_service.fly.transport.time", clock)
    settings = BreakerSettings(
        failures=5,
        window=PROBE_SECONDS,
        shortest_interval=PROBE_SECONDS,
        longest_interval=PROBE_SECONDS,
    )
    health = AppHealthRegistry(settings=settings)
    mock = httpx.MockTransport(network)
    async with open_client("http://fly.test", "t", 1.0, mock, health) as (fly, _):
        # The retry of the fifth call is the first one that the circuit rejects.
        assert await outcomes(fly, 5) == ["ProviderUnavailable"] * 4 + ["CircuitOpen"]
        sent = network.seen
        # No more retries than the budget has.
        assert sent <= 5 + BURST
        assert await outcomes(fly, 100) == ["CircuitOpen"] * 100
        assert network.seen == sent
        # Another app has its own circuit.
        network.answer = started
        assert await outcomes(fly, 1, "fish") == ["ok"]
        assert await outcomes(fly, 1) == ["CircuitOpen"]
        clock.ahead = PROBE_SECONDS + 1
        assert await outcomes(fly, 9) == ["ok"] * 9
    lines = [
        record.getMessage()
        for record in caplog.records
        if "circuit" in vars(record).get("action", "")
    ]
    assert "does not answer for app birds: 5 machines" in lines[0]
    assert "answers again for app birds" in lines[1]
    assert "1 probes were sent and 102 calls rejected" in lines[1]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (fly_error(404, "machine not found"), "ContainerNotFound"),
        (fly_error(409, "machine is replacing"), "NotStartableYet"),
        (fly_error(412, "failed_precondition: x"), "StateConflict"),
        (fly_error(422, "x"), "RequestRejected"),
        (fly_error(401, "x"), "ProviderRefused"),
        (fly_error(408, "deadline_exceeded: upstream"), "ProviderUnavailable"),
        (lambda _: httpx.Response(404, text="nobody here"), "ProviderUnavailable"),
    ],
)
async def test_error_responses_of_fly_do_not_open_the_circuit(answer: Any, outcome: str) -> None:
    transport = httpx.MockTransport(ScriptedNetwork(answer))
    async with open_client("http://fly.test", "t", transport=transport) as (fly, _):
        assert await outcomes(fly, 30) == [outcome] * 30


async def test_one_failing_machine_does_not_open_the_circuit() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return fly_error(502)(request) if "/m3" in request.url.path else started(request)

    transport = httpx.MockTransport(ScriptedNetwork(answer))
    async with open_client("http://fly.test", "t", 100.0, transport) as (fly, _):
        for _ in range(20):
            ends = await outcomes(fly, 6)
            assert ends == ["ok"] * 3 + ["ProviderUnavailable"] + ["ok"] * 2


async def test_a_change_with_unknown_outcome_stays_unknown_when_the_circuit_opens() -> None:
    """The circuit rejects its retry, but the first attempt was sent."""
    health = AppHealthRegistry(
        settings=BreakerSettings(failures=2, window=60, shortest_interval=60, longest_interval=60)
    )
    transport = httpx.MockTransport(ScriptedNetwork(fly_error(504)))
    async with open_client("http://fly.test", "t", 1.0, transport, health) as (fly, _):
        assert await outcomes(fly, 1) == ["ProviderUnavailable"]
        with pytest.raises(OutcomeUnknown):
            await fly.set_cordoned(
                ContainerRef("birds", "m9"), "", Deadline.after(9), cordoned=True
            )
        with pytest.raises(CircuitOpen) as rejected:
            await fly.start(ContainerRef("birds", "m9"), "", Deadline.after(9))
        assert not isinstance(rejected.value, OutcomeUnknown)


async def test_few_calls_are_retried_when_half_of_them_fail() -> None:
    """Without an outage: retries stay within a tenth of the answers plus the burst."""
    dice = random.Random(7)
    network = ScriptedNetwork(
        lambda request: started(request) if dice.random() < 0.5 else fly_error(503)(request)
    )
    transport, began = httpx.MockTransport(network), time.monotonic()
    health = AppHealthRegistry(0.1, BreakerSettings(failures=50))
    async with open_client("http://fly.test", "t", 1.0, transport, health) as (fly, _):
        ends = [end for _ in range(10) for end in await outcomes(fly, 12)]
    refilled = REFILL_PER_SECOND * (time.monotonic() - began)
    assert network.seen - len(ends) <= BURST + 0.1 * ends.count("ok") + refilled
    assert network.seen - len(ends) >= BURST


# --- over the emulator -------------------------------------------------------------------------


async def test_an_open_circuit_is_unavailable_with_a_retry_time(service: Service) -> None:
    """Never NOT_FOUND and never a state: the error says nothing about the container."""
    container_id = await service.create()
    missing = [f"{n:014x}" for n in range(8)]
    settings, began = BreakerSettings(), time.monotonic()
    await service.admin.set_fault("unavailable")
    await asyncio.gather(*(failing(_get(service, other)) for other in missing))
    mark, opened = await service.mark(), time.monotonic()
    for _ in range(20):
        failed = await failing(_get(service, container_id))
        assert failed.reason == "PROVIDER_UNAVAILABLE"
        assert failed.retry_seconds is not None
        longest = settings.probe_interval(time.monotonic() - began) + RETRY_SPREAD
        assert 0 < failed.retry_seconds <= longest
    probes = (time.monotonic() - opened) / settings.shortest_interval
    assert len(await service.requests(mark)) <= 1 + probes
    await service.admin.clear_faults()

    async def answers() -> bool:
        return await _state(service, container_id) is not None

    await eventually(answers)


@pytest.mark.parametrize("slow", ["start", "wait"])
async def test_a_start_in_progress_continues_when_the_circuit_closes(
    service: Service, slow: str
) -> None:
    """It was accepted before the circuit opened; its wait and its boot id come after the outage."""
    container_id = await service.create()
    seen = await service.stub.ExecContainer(
        pb.ExecContainerRequest(
            container_id=container_id, command=["cat", "/proc/sys/kernel/random/boot_id"]
        ),
        timeout=30,
    )
    await service.stub.SuspendContainer(
        pb.SuspendContainerRequest(container_id=container_id), timeout=30
    )
    fault = await service.admin.set_fault("slow_after", action=slow, delay_ms=60_000)
    resuming = asyncio.ensure_future(
        service.stub.ResumeContainer(
            pb.ResumeContainerRequest(
                container_id=container_id, expected_boot_id=seen.stdout.strip()
            ),
            timeout=30,
        )
    )

    async def accepted() -> bool:
        return await service.admin.fired(fault) > 0

    await eventually(accepted, interval=0.005)
    outage = await service.admin.set_fault("server_error", action="get", times=None)
    await asyncio.gather(*(failing(_get(service, f"{n:014x}")) for n in range(8)))
    mark = await service.mark()
    await service.admin.end_fault(fault)
    await service.admin.end_fault(outage)
    answer = await resuming
    assert answer.memory_preserved == pb.MEMORY_PRESERVED_YES
    assert "start" not in await service.requests(mark)


async def test_a_start_lost_in_an_outage_is_requested_again_soon_after(
    service: Service,
) -> None:
    """After failed polls the next ones are short again, because the start may not have begun."""
    container_id = await service.create()
    await service.stub.SuspendContainer(
        pb.SuspendContainerRequest(container_id=container_id), timeout=30
    )
    await service.admin.set_fault("server_error", action="start")
    await service.admin.set_fault("server_error", action="wait", times=2)
    mark = await service.mark()
    request = pb.ResumeContainerRequest(container_id=container_id)
    answer = await service.stub.ResumeContainer(request, timeout=30)
    assert answer.container.state == pb.CONTAINER_STATE_STARTED
    # A read comes before the next poll, and shows that nothing has begun.
    assert (await service.requests(mark))[:5] == ["start", "wait", "get", "start", "wait"]


async def test_an_outage_of_one_app_does_not_affect_another(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("unavailable", app="elsewhere")
    lost = [
        failing(service.stub.GetContainer(pb.GetContainerRequest(app="elsewhere", container_id=m)))
        for m in (f"{n:014x}" for n in range(8))
    ]
    assert {failed.reason for failed in await asyncio.gather(*lost)} == {"PROVIDER_UNAVAILABLE"}
    assert await _state(service, container_id) == pb.CONTAINER_STATE_STARTED


async def test_the_settings_come_from_the_configuration(service: Service) -> None:
    began = time.monotonic()
    async with serving(service.emulator, fly_breaker_failures=2, fly_retry_ratio=0.0) as quick:
        await quick.admin.set_fault("unavailable")
        for n in range(2):
            await failing(_get(quick, f"{n:014x}"))
        mark = await quick.mark()
        for _ in range(20):
            await failing(_get(quick, f"{9:014x}"))
        # No call but the probes, of which there is none in the first second.
        probes = (time.monotonic() - began) / BreakerSettings().shortest_interval
        assert len(await quick.requests(mark)) <= probes


def _get(service: Service, container_id: str) -> Any:
    request = pb.GetContainerRequest(app=APP, container_id=container_id)
    return service.stub.GetContainer(request, timeout=30)


async def _state(service: Service, container_id: str) -> pb.ContainerState.ValueType | None:
    try:
        state: pb.ContainerState.ValueType = (await _get(service, container_id)).container.state
    except Exception:  # noqa: BLE001  # not readable yet
        return None
    return state
