"""Start and resume: bring a container up, and prove what came back."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

from container_service.container import (
    Container,
    ContainerRef,
    ContainerState,
    MemoryPreserved,
)
from container_service.errors import (
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
from container_service.outages import Silence, past_circuit
from container_service.waiting import Waiting, pause, slices

if TYPE_CHECKING:
    from container_service.deadlines import Deadline
    from container_service.provider import Provider

log = logging.getLogger(__name__)

#: The kernel draws it at every boot and a thawed guest keeps it: equal means memory survived.
BOOT_ID_COMMAND = ("cat", "/proc/sys/kernel/random/boot_id")
BOOT_ID_SECONDS = 5.0
_LONGEST_BOOT_ID = 64

#: Seconds between tries to start what is not startable yet; the provider limits the rate to one a
#: second and the last ones must keep to that.
_RETRY_SECONDS = (0.25, 0.5, 1.0)

_COMING_UP = frozenset(
    {
        ContainerState.CREATED,
        ContainerState.STARTING,
        ContainerState.UPDATING,
        ContainerState.UNKNOWN,
    }
)
_UP = frozenset({ContainerState.STARTED, ContainerState.STARTING})
_OVER = frozenset({ContainerState.DESTROYING, ContainerState.DESTROYED, ContainerState.FAILED})


@dataclass(frozen=True, slots=True)
class Boot:
    """A container that runs, and its guest's boot id: empty where it did not answer."""

    container: Container
    boot_id: str


@dataclass(frozen=True, slots=True)
class Resumption:
    """A boot, with the verdict on memory and the sentence that says what it rests on."""

    boot: Boot
    memory_preserved: MemoryPreserved
    evidence: str


class Booting:
    """Brings containers up."""

    def __init__(self, provider: Provider, waiting: Waiting) -> None:
        self._provider = provider
        self._waiting = waiting

    async def start(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> Boot:
        """Start a container and wait until it runs; of one that runs already, only report."""
        await self._bring_up(ref, nonce, deadline)
        # No read of the newest start event here: beside or after the exec it could be of a later
        # boot than the boot id, and the pair would vouch for memory that is gone.
        running = Container(
            ref, ContainerState.STARTED, provider_state=ContainerState.STARTED.value
        )
        return Boot(running, await self._boot_id(ref, deadline))

    async def resume(
        self, ref: ContainerRef, expected_boot_id: str, deadline: Deadline
    ) -> Resumption:
        """Thaw a container and judge by its boot id whether its memory survived."""
        boot = await self.start(ref, "", deadline)
        return Resumption(boot, *judge(expected_boot_id, boot.boot_id))

    async def _bring_up(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> None:
        while True:
            accepted = await self._ask(ref, nonce, deadline)
            if await self._comes_up(ref, deadline, accepted=accepted):
                return

    async def _ask(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> bool:
        """Ask for the start; whether it was surely accepted, rather than perhaps or by itself."""
        silence = Silence()
        for seconds in chain(_RETRY_SECONDS, repeat(_RETRY_SECONDS[-1])):
            try:
                await self._provider.start(ref, nonce, deadline)
                return True
            except OutcomeUnknown as error:
                if deadline.passed:
                    raise
                log.info("Looking whether a start was taken: %s", error)
                return False
            except CircuitOpen as held_back:
                # Not sent. A short outage is ridden out, as by a start that was.
                if deadline.passed or silence.too_long(held_back):
                    raise
            except LeaseHeld:
                # The provider's proxy takes the lease too, to wake a container for its traffic.
                if nonce or (await self._provider.get(ref, deadline)).state not in _UP:
                    raise
                return True
            except StateConflict as refusal:
                seen = await self._provider.get(ref, deadline)
                if seen.state in _UP:
                    return True
                if not isinstance(refusal, NotStartableYet) or seen.state in _OVER:
                    raise
                if seen.state in _COMING_UP:
                    return False
                if seconds >= deadline.remaining():
                    raise ProviderUnavailable(
                        str(refusal), provider_request_id=refusal.provider_request_id
                    ) from refusal
            await pause(seconds, deadline)
        raise AssertionError("unreachable")

    async def _comes_up(self, ref: ContainerRef, deadline: Deadline, *, accepted: bool) -> bool:
        """Wait until the container runs; False where the start has to be asked for again."""
        begun = time.monotonic()
        silence = Silence()
        first = None if accepted else self._waiting.lag_window
        lengths, started = slices(first), {ContainerState.STARTED}
        heard = True
        while True:
            try:
                # After silence a read comes first: it tells at once that the provider is back.
                if heard and await self._provider.wait(ref, started, next(lengths), deadline):
                    return True
                seen = await self._provider.get(ref, deadline)
            except (ProviderUnavailable, ProviderRateLimited) as error:
                if deadline.passed or silence.too_long(error):
                    raise
                await pause(1.0, deadline)
                heard, lengths = False, slices(first)
                continue
            heard = True
            silence.broken()
            if seen.state is ContainerState.STARTED:
                return True
            lagging = time.monotonic() - begun < self._waiting.lag_window
            if seen.state not in _COMING_UP and not lagging:
                if accepted or seen.state in _OVER:
                    raise StateConflict(
                        f"the container was started but is {seen.provider_state}",
                        state=seen.state.value,
                    )
                return False
            if deadline.passed:
                raise WaitTimedOut("the container was not seen started in time")

    async def _boot_id(self, ref: ContainerRef, deadline: Deadline) -> str:
        """The guest's boot id, asked for once; empty where it does not answer."""
        soon = deadline.within(BOOT_ID_SECONDS)
        try:
            result = await past_circuit(
                lambda: self._provider.execute(ref, BOOT_ID_COMMAND, BOOT_ID_SECONDS, soon), soon
            )
        except ServiceError as error:
            log.info(
                "A guest did not tell its boot id: %s",
                error,
                extra={"action": "boot_id_unknown", "container_id": ref.container_id},
            )
            return ""
        return read_boot_id(result.exit_code, result.stdout)


def read_boot_id(exit_code: int, stdout: str) -> str:
    """The boot id that a command printed; empty where it is none."""
    word = stdout.strip()
    sound = exit_code == 0 and len(word.split()) == 1 and len(word) <= _LONGEST_BOOT_ID
    return word if sound else ""


def judge(expected: str, found: str) -> tuple[MemoryPreserved, str]:
    """Whether memory survived, and what that rests on."""
    if not found:
        return MemoryPreserved.UNKNOWN, "the guest did not tell its boot id"
    if not expected:
        return MemoryPreserved.UNKNOWN, "no boot id was expected"
    if found == expected:
        return MemoryPreserved.YES, "the guest's boot id is the one from before"
    return MemoryPreserved.NO, "the guest booted anew: its boot id is another than before"
