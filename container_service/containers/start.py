"""Start and resume containers, and prove by the boot id whether memory survived."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

from container_service.containers.errors import (
    CircuitOpen,
    LeaseHeld,
    NotStartableYet,
    OutcomeUnknown,
    ProviderRateLimited,
    ProviderUnavailable,
    ServiceError,
    StateConflict,
    WaitTimedOut,
)
from container_service.containers.model import (
    Container,
    ContainerRef,
    ContainerState,
    MemoryPreserved,
)
from container_service.containers.outages import OutageTimer, retry_while_circuit_open
from container_service.containers.wait import Waiter, poll_lengths, sleep_within

if TYPE_CHECKING:
    from container_service.containers.deadlines import Deadline
    from container_service.containers.provider import Provider

log = logging.getLogger(__name__)

#: Linux generates this id at every boot, and a guest that resumes from a snapshot keeps it. The
#: same id before and after therefore proves that memory survived.
BOOT_ID_COMMAND = ("cat", "/proc/sys/kernel/random/boot_id")
BOOT_ID_SECONDS = 5.0
_LONGEST_BOOT_ID = 64

#: Seconds between start requests for a container that is not startable yet. The last interval
#: repeats, and is the provider's rate of one start a second.
_RETRY_SECONDS = (0.25, 0.5, 1.0)

_STARTS_BY_ITSELF = frozenset(
    {
        ContainerState.CREATED,
        ContainerState.STARTING,
        ContainerState.UPDATING,
        ContainerState.UNKNOWN,
    }
)
_UP = frozenset({ContainerState.STARTED, ContainerState.STARTING})
_FINAL = frozenset({ContainerState.DESTROYING, ContainerState.DESTROYED, ContainerState.FAILED})


@dataclass(frozen=True, slots=True)
class StartResult:
    """A running container and the boot id of its guest; empty if the guest did not answer."""

    container: Container
    boot_id: str


@dataclass(frozen=True, slots=True)
class ResumeResult:
    """A start, the verdict on memory, and a sentence that gives the reason of the verdict."""

    started: StartResult
    memory_preserved: MemoryPreserved
    evidence: str


class Starter:
    """Starts and resumes containers."""

    def __init__(self, provider: Provider, waiter: Waiter) -> None:
        self._provider = provider
        self._waiter = waiter

    async def start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> StartResult:
        """Start a container and wait until it runs. A running container is left as it is.

        Raises StateConflict, LeaseHeld or WaitTimedOut.
        """
        await self._bring_up(ref, nonce, deadline)
        # The container is not read here. The read would be later than the exec below or run beside
        # it, so its start time could be that of another boot than the boot id. A caller that stored
        # the two as a pair would then believe in memory that is lost.
        running = Container(
            ref, ContainerState.STARTED, provider_state=ContainerState.STARTED.value
        )
        return StartResult(running, await self._boot_id(ref, deadline))

    async def resume(
        self, ref: ContainerRef, expected_boot_id: str, deadline: Deadline
    ) -> ResumeResult:
        """Resume a container and compare its boot id with the one from before the suspend."""
        started = await self.start(ref, "", deadline)
        return ResumeResult(started, *memory_verdict(expected_boot_id, started.boot_id))

    async def _bring_up(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        while True:
            accepted = await self._request_start(ref, nonce, deadline)
            if await self._wait_until_started(ref, deadline, accepted=accepted):
                return

    async def _request_start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> bool:
        """Request a start, with retries. True if it was accepted or the container is up.

        False if that is not certain: the answer was lost, or the container is in a state that leads
        to STARTED by itself. The caller then watches the container, and requests the start again if
        nothing comes of it.
        """
        outage = OutageTimer()
        for seconds in chain(_RETRY_SECONDS, repeat(_RETRY_SECONDS[-1])):
            try:
                await self._provider.start(ref, nonce, deadline)
                return True
            except OutcomeUnknown as error:
                if deadline.passed:
                    raise
                log.info(
                    "Checking whether a start was accepted, as the answer was lost: %s",
                    error,
                    extra={"action": "outcome_unknown", "container_id": ref.container_id},
                )
                return False
            except CircuitOpen as error:
                # Never sent. Tolerate a short outage, as a start that was sent does.
                if deadline.passed or outage.expired(error):
                    raise
            except LeaseHeld:
                # Fly's proxy takes a lease too when traffic wakes a container. Then the container
                # is coming up, which is what the caller wants.
                if nonce or (await self._provider.get(ref, deadline)).state not in _UP:
                    raise
                return True
            except StateConflict as error:
                seen = await self._provider.get(ref, deadline)
                if seen.state in _UP:
                    return True
                if not isinstance(error, NotStartableYet) or seen.state in _FINAL:
                    raise
                if seen.state in _STARTS_BY_ITSELF:
                    return False
                if seconds >= deadline.remaining():
                    raise ProviderUnavailable(
                        str(error), provider_request_id=error.provider_request_id
                    ) from error
            await sleep_within(seconds, deadline)
        raise AssertionError("unreachable")

    async def _wait_until_started(
        self, ref: ContainerRef, deadline: Deadline, *, accepted: bool
    ) -> bool:
        """Wait until the container runs. False if the start has to be requested again.

        Within the lag window a read of a state such as SUSPENDED proves nothing: it may be older
        than the start. After the window it means that an accepted start failed (StateConflict), or
        that a start whose answer was lost never happened (False).
        """
        began = time.monotonic()
        outage = OutageTimer()
        first = None if accepted else self._waiter.lag_window
        polls, goal = poll_lengths(first), {ContainerState.STARTED}
        answered = True
        while True:
            try:
                # After an error, read before polling: the read shows at once that the provider is
                # back, where a poll would answer only at its end.
                if answered and await self._provider.wait(ref, goal, next(polls), deadline):
                    return True
                asked = time.monotonic()
                seen = await self._provider.get(ref, deadline)
            except (ProviderUnavailable, ProviderRateLimited) as error:
                if deadline.passed or outage.expired(error):
                    raise
                await sleep_within(1.0, deadline)
                answered, polls = False, poll_lengths(first)
                continue
            answered = True
            outage.reset()
            if seen.state is ContainerState.STARTED:
                return True
            lagging = asked - began < self._waiter.lag_window
            if seen.state not in _STARTS_BY_ITSELF and not lagging:
                if accepted or seen.state in _FINAL:
                    raise StateConflict(
                        f"the container was started but is now {seen.provider_state}: read its"
                        " state, then start it again or replace it",
                        state=seen.state.value,
                    )
                return False
            if deadline.passed:
                raise WaitTimedOut(
                    "the container was not observed started before the deadline: retry, which"
                    " waits for the same start"
                )

    async def _boot_id(self, ref: ContainerRef, deadline: Deadline) -> str:
        """The boot id of the guest; empty if the guest does not answer. Never retried if sent.

        A failure is not an error of the start: the container runs. The verdict on memory is then
        UNKNOWN.
        """
        soon = deadline.within(BOOT_ID_SECONDS)
        try:
            result = await retry_while_circuit_open(
                lambda: self._provider.execute(ref, BOOT_ID_COMMAND, BOOT_ID_SECONDS, soon), soon
            )
        except ServiceError as error:
            log.info(
                "The boot id of a container could not be read: %s",
                error,
                extra={"action": "boot_id_unknown", "container_id": ref.container_id},
            )
            return ""
        return parse_boot_id(result.exit_code, result.stdout)


def parse_boot_id(exit_code: int, stdout: str) -> str:
    """The boot id that the command printed; empty if the command failed or printed no id."""
    word = stdout.strip()
    valid = exit_code == 0 and len(word.split()) == 1 and len(word) <= _LONGEST_BOOT_ID
    return word if valid else ""


def memory_verdict(expected: str, found: str) -> tuple[MemoryPreserved, str]:
    """Whether memory survived, and the reason. An empty id on either side proves nothing."""
    if not found:
        return MemoryPreserved.UNKNOWN, "the guest did not return its boot id"
    if not expected:
        return MemoryPreserved.UNKNOWN, "the caller gave no expected boot id"
    if found == expected:
        return MemoryPreserved.YES, "the boot id of the guest is the expected one"
    return MemoryPreserved.NO, "the guest booted again: its boot id is not the expected one"
