"""Climbing the ladder: the work of a start, from a committed intent to its outcome.

Every step can be done again: a taker-over looks at what is true and goes on from there. Create is
idempotent by name, resume by what runs; results are written under the transition's epoch.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.decision import dump_attempts
from session_service.domain.ladder import BEST_OF, least, rungs_for, without_memory
from session_service.domain.session import (
    Attempt,
    AttemptResult,
    ConditionType,
    Container,
    ContainerState,
    Continuity,
    EndReason,
    Outcome,
    PauseDepth,
    Rung,
    Session,
)
from session_service.domain.states import Transition
from session_service.errors import (
    ContinuityUnavailable,
    ProviderUnavailable,
    Retryable,
    RoostError,
)
from session_service.lifecycle import outcomes
from session_service.lifecycle.evidence import address, labels
from session_service.lifecycle.ownership import Held, OwnershipLost
from session_service.ports import Booted, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import sessions, transitions
from session_service.storage.assignments import NOW, Plus
from session_service.storage.transitions import Change, finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.ownership import Ownership
    from session_service.ports import Containers, Previews
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Between tries to start a machine that somebody has leased, in s.
LEASE_PAUSE = 0.5
#: One exec for the guest's boot id, in s.
PROOF_TIMEOUT = 10.0


class RungLost(Exception):
    """What the rung would bring back is proved lost; the next may be tried."""


class LessSurvived(Exception):
    """It came back, running, with less than was asked for."""

    def __init__(self, booted: Booted) -> None:
        super().__init__(booted.evidence)
        self.booted = booted


@dataclass(slots=True)
class Climb:
    """One climb's state: where it stands, and what was tried."""

    held: Held
    session: Session
    container: Container
    least: Continuity | None
    now: datetime
    attempts: list[Attempt] = field(default_factory=list)
    found: tuple[ConditionType, ...] = ()
    lost: set[int] = field(default_factory=set)
    """Generations whose containers were proved lost."""
    up: bool = False
    """Whether a container of this climb is known to run, so that a failure must put it to rest."""

    def note(self, rung: Rung, result: AttemptResult, reason: str, began: float) -> None:
        """Record how a rung went."""
        milliseconds = round((monotonic() - began) * 1000)
        self.attempts.append(Attempt(rung, result, reason, milliseconds))


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a climb ended well."""

    outcome: Outcome
    continuity: Continuity
    verified: bool
    boot_id: str | None


class Climber:
    """Does the work of starts."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        previews: Previews,
        looker: Looker,
        ownership: Ownership,
        installation_id: UUID,
    ) -> None:
        self._database = database
        self._containers = containers
        self._previews = previews
        self._looker = looker
        self._ownership = ownership
        self._installation_id = installation_id
        #: Works on a transition that a start's outcome began: the end of the session that it
        #: replaced, the pause of what came up in vain. Given by whoever wires both together.
        self.on_begun: Callable[[Session, float], object] = lambda session, began: None

    async def carry_out(self, held: Held) -> None:
        """Climb, and write down what came of it. Raises OwnershipLost, StorageUnavailable."""
        record = await sessions.find(self._database, held.session_id)
        if record is None or record.container is None or record.session.epoch != held.epoch:
            raise OwnershipLost
        session = record.session
        wish, policy = wishes.load(session.wish), policies.load(session.policy)
        # What is new has nothing to keep, so that nothing can be asked of it.
        wanted = least(wish, policy) if session.prior_state is not None else None
        climb = Climb(held, session, record.container, wanted, record.now)
        if record.container.destroy_time is not None and record.container.start_time is not None:
            climb.found = (ConditionType.CONTAINER_LOST,)
        try:
            await self._land(climb, await self._climb(climb))
        except LessSurvived as less:
            await self._refuse_running(climb, less)
        except RoostError as error:
            await self._fail(climb, error)

    async def _climb(self, climb: Climb) -> Landing:
        """Try the rungs that the row says are left, each only after those before are lost."""
        # A new container that vanishes as it comes up is made once more, as the next generation.
        for rung in (*rungs_for(climb.session, climb.container), Rung.CREATE):
            if climb.least is not None and BEST_OF[rung] < climb.least:
                continue
            began = monotonic()
            try:
                return await self._try(climb, rung)
            except RungLost as lost:
                climb.note(rung, AttemptResult.FAILED, str(lost), began)
                climb.lost.add(climb.container.generation)
                climb.up = False
                if climb.container.start_time is not None:
                    climb.found = (ConditionType.CONTAINER_LOST,)
            except LessSurvived:
                climb.note(rung, AttemptResult.DEGRADED, "BOOT_ID_CHANGED", began)
                raise
            except RoostError as error:
                climb.note(rung, AttemptResult.FAILED, error.reason, began)
                raise
            except (ContainerAbsent, LeaseHeld, LeaseLost) as error:
                climb.note(rung, AttemptResult.FAILED, "PROVIDER_BUSY", began)
                raise ProviderUnavailable(f"{error}; try again") from error
        if climb.least is None or climb.least <= BEST_OF[Rung.CREATE]:
            raise ProviderUnavailable("new containers vanish as they come up; try again")
        raise ContinuityUnavailable(
            "nothing is left that could bring back what was asked for; "
            "start with a lower min_continuity to get a new container"
        )

    async def _try(self, climb: Climb, rung: Rung) -> Landing:
        if rung is not Rung.CREATE:
            return await self._bring_back(climb, rung)
        container = climb.container
        unborn = container.container_id is not None and container.start_time is None
        if unborn and container.destroy_time is None and container.generation not in climb.lost:
            return await self._finish_create(climb)
        return await self._create(climb)

    # --- rungs ---------------------------------------------------------------------------------

    async def _bring_back(self, climb: Climb, rung: Rung) -> Landing:
        """Resume or restart the container that is there, and prove what survived in it."""
        began, container = monotonic(), climb.container
        booted = await self._boot(climb, container.boot_id)
        if container.cordoned:
            await self._containers.uncordon(address(container), timeout=climb.held.left)
        await self._ready(climb, container)
        landing = _proved(rung, booted, keeps_files=specs.keeps_files(climb.session.spec))
        if climb.session.loss_untold:
            # Its memory is whole since a boot that no answer has told of: what was there at the
            # last answer is gone all the same.
            landing = _capped(landing, without_memory(climb.session))
        if climb.least is not None and landing.continuity < climb.least:
            if booted.memory_preserved is None and climb.least is Continuity.MEMORY:
                # It may well be there: back to rest, so that the next start proves it anew.
                raise ProviderUnavailable(
                    "the container runs, but its memory could not be proved yet; try again"
                )
            raise LessSurvived(booted)
        kept = landing.continuity is BEST_OF[rung]
        if landing.continuity < Continuity.MEMORY:
            climb.found = (ConditionType.MEMORY_LOST,)
        result = AttemptResult.SUCCEEDED if kept else AttemptResult.DEGRADED
        climb.note(rung, result, _reason(booted), began)
        return landing

    async def _boot(self, climb: Climb, expected_boot_id: str | None) -> Booted:
        container = climb.container
        try:
            booted = await self._resume(climb, expected_boot_id)
            climb.up = True
            return booted
        except ContainerAbsent:
            if not await self._looker.confirm_absent(container):
                raise ProviderUnavailable("the provider contradicts itself; try again") from None
            raise RungLost("CONTAINER_LOST") from None
        except RoostError:
            if await self._destroyed(climb):
                raise RungLost("CONTAINER_DESTROYED") from None
            raise

    async def _resume(self, climb: Climb, expected_boot_id: str | None) -> Booted:
        """Resume; a lease that is in the way is waited out.

        It is that of a pause whose owner died, kept so that its late request is refused, or
        somebody's at the provider; both are short.
        """
        where = address(climb.container)
        while True:
            try:
                return await self._containers.resume(
                    where, expected_boot_id, timeout=climb.held.left
                )
            except LeaseHeld:
                await asyncio.sleep(min(LEASE_PAUSE, climb.held.left))

    async def _destroyed(self, climb: Climb) -> bool:
        """Whether the provider, which would not start it, shows it destroyed; no answer is no."""
        try:
            seen = await self._containers.get(address(climb.container), timeout=climb.held.left)
        except (RoostError, ContainerAbsent):
            return False
        return seen.state is ContainerState.DESTROYED

    async def _create(self, climb: Climb) -> Landing:
        """Create a container, or adopt the one that an earlier owner created."""
        began = monotonic()
        await self._want_container(climb)
        session, container = climb.session, climb.container
        seen = await self._containers.create(
            container.app,
            container.name,
            specs.load(session.spec),
            labels(self._installation_id, session.session_id, session.generation),
            timeout=climb.held.left,
        )
        found = {
            "container_id": seen.address.container_id,
            "app": seen.address.app,
            "region": seen.region,
            "state": seen.state,
        }
        await self._write(climb, Change(session.session_id, session.epoch, container=found))
        await self._wait_started(climb, climb.container)
        climb.up = True
        await self._ready(climb, climb.container)
        boot_id = await self._containers.read_boot_id(
            address(climb.container), timeout=min(PROOF_TIMEOUT, climb.held.left)
        )
        climb.note(Rung.CREATE, AttemptResult.SUCCEEDED, "CREATED", began)
        return Landing(Outcome.CREATED, Continuity.NONE, True, boot_id)

    async def _finish_create(self, climb: Climb) -> Landing:
        """The container was created by an owner that is gone: bring it up, it is still new."""
        began = monotonic()
        booted = await self._boot(climb, None)
        await self._ready(climb, climb.container)
        climb.note(Rung.CREATE, AttemptResult.SUCCEEDED, "ADOPTED", began)
        return Landing(Outcome.CREATED, Continuity.NONE, True, booted.boot_id)

    async def _want_container(self, climb: Climb) -> None:
        """Where the last container is gone, commit the want of a new one before asking for it."""
        session, container = climb.session, climb.container
        if container.container_id is None and container.destroy_time is None:
            return
        gone = Change(session.session_id, session.epoch, container=outcomes.GONE, advance=False)
        if await transitions.write(self._database, gone) is None:
            raise OwnershipLost
        wanted = new_container(session.session_id, session.generation + 1, container.app)
        if (
            await transitions.next_generation(
                self._database, session.session_id, session.epoch, wanted
            )
            is None
        ):
            raise OwnershipLost
        await self._reread(climb)

    async def _wait_started(self, climb: Climb, container: Container) -> None:
        """Wait until it runs. That it is not found just after its creation is lag, not loss."""
        try:
            await self._containers.wait_started(address(container), timeout=climb.held.left)
        except ContainerAbsent:
            if await self._looker.confirm_absent(container):
                raise RungLost("CONTAINER_LOST") from None
            await self._containers.wait_started(address(container), timeout=climb.held.left)

    async def _ready(self, climb: Climb, container: Container) -> None:
        if not await self._previews.wait_ready(container, climb.held.left):
            raise ProviderUnavailable(
                "the container runs, but its preview does not answer; look at the application's "
                "log, and try again"
            )

    # --- writing -------------------------------------------------------------------------------

    async def _write(self, climb: Climb, change: Change) -> None:
        """Write a note on the way. Raises OwnershipLost where the epoch has moved on."""
        noted = Change(change.session_id, change.epoch, container=change.container, advance=False)
        if await transitions.write(self._database, noted) is None:
            raise OwnershipLost
        await self._reread(climb)

    async def _reread(self, climb: Climb) -> None:
        record = await sessions.find(self._database, climb.held.session_id)
        if record is None or record.container is None or record.session.epoch != climb.held.epoch:
            raise OwnershipLost
        climb.session, climb.container, climb.now = record.session, record.container, record.now

    async def _land(self, climb: Climb, landing: Landing) -> None:
        """Commit the outcome; a session that was replaced begins to end in the same commit."""
        session = climb.session
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **outcomes.active(session),
                "start_time": NOW,
                "last_active_time": NOW,
                # Without a boot id nothing vouches for what runs: the next start looks.
                "verified_at": None if landing.boot_id is None else NOW,
                "start_count": Plus(),
                "loss_untold": False,
                "conditions": outcomes.marked(climb.found, climb.now),
            },
            container=_running(landing.boot_id),
            decision=finished(
                outcome=landing.outcome,
                continuity=int(landing.continuity),
                continuity_verified=landing.verified,
                attempts=dump_attempts(climb.attempts),
            ),
            decision_id=session.decision_id,
        )
        await self._commit_with_replaced(session, change)

    async def _commit_with_replaced(self, session: Session, change: Change) -> None:
        began = monotonic()
        replaced = await self._replaced(session)
        changes = [change]
        if replaced is not None:
            changes.append(outcomes.turned_to_end(replaced, self._ownership.terms.values()))
        written = await transitions.write_all(self._database, changes)
        if written is None:
            raise OwnershipLost
        if replaced is not None:
            self.on_begun(written[1], began)

    async def _replaced(self, session: Session) -> Session | None:
        """The session that waits for this one to stand, if there is one."""
        if session.predecessor_id is None:
            return None
        record = await sessions.find(self._database, session.predecessor_id)
        if record is None or record.session.transition is not Transition.REPLACE:
            return None
        return record.session

    async def _refuse_running(self, climb: Climb, less: LessSurvived) -> None:
        """It runs, with its files and without its memory: keep it, refuse, tell it next time."""
        session = climb.session
        error = ContinuityUnavailable(
            "the container came back without its memory; its files are kept. "
            "Start with min_continuity FILESYSTEM or less to go on with it"
        )
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **outcomes.active(session),
                "start_time": NOW,
                "verified_at": None if less.booted.boot_id is None else NOW,
                "loss_untold": True,
                "conditions": outcomes.marked((ConditionType.MEMORY_LOST,), climb.now),
            },
            container=_running(less.booted.boot_id),
            decision={**outcomes.refused(error), "attempts": dump_attempts(climb.attempts)},
            decision_id=session.decision_id,
        )
        if await transitions.write(self._database, change) is None:
            raise OwnershipLost

    async def _fail(self, climb: Climb, error: RoostError) -> None:
        """Nothing came up: say so, and leave the session as good as it was."""
        session = climb.session
        _log.warning(
            "a start failed: %s",
            error,
            extra={
                "action": "start",
                "session_id": str(session.session_id),
                "details": error.metadata,
            },
        )
        replaced = await self._replaced(session)
        tried: dict[str, object] = {"attempts": dump_attempts(climb.attempts)}
        if replaced is not None:
            changes = [
                _ended(session, error, climb.container, tried),
                outcomes.gone_back(replaced, None),
            ]
        elif session.prior_state is not None and climb.up and _stood(climb):
            await self._put_to_rest(session, error, tried)
            return
        elif session.prior_state is not None:
            changes = [_back_to_rest(session, error, climb, tried)]
        elif isinstance(error, Retryable):
            # Whether the provider created it may be unknown: the name must stay taken.
            changes = [_with(outcomes.left_open(session, error), tried)]
        else:
            changes = [_ended(session, error, climb.container, tried)]
        if await transitions.write_all(self._database, changes) is None:
            raise OwnershipLost
        if not changes[0].container.get("wanted", True):
            await self._discard(climb.container)

    async def _put_to_rest(
        self, session: Session, error: RoostError, tried: dict[str, object]
    ) -> None:
        """It came up, and the start failed all the same: it goes back to rest, memory and all."""
        began = monotonic()
        change = outcomes.turned_to_pause(session, error, self._ownership.terms.values())
        written = await transitions.write(self._database, _with(change, tried))
        if written is None:
            raise OwnershipLost
        self.on_begun(written, began)

    async def _discard(self, container: Container) -> None:
        """Destroy what nobody wants; where that fails its row says so until it is done."""
        try:
            where = None
            if container.container_id is not None:
                where = address(container)
            elif (seen := await self._looker.find(container)) is not None:
                where = seen.address
            if where is not None:
                await self._containers.destroy(where, None, timeout=PROOF_TIMEOUT)
        except (RoostError, LeaseHeld, LeaseLost) as error:
            _log.warning(
                "a container that nobody wants was not destroyed yet: %s",
                error,
                extra={"action": "discard", "container_id": container.container_id},
            )
            return
        await transitions.destroyed(self._database, container.session_id, container.generation)


def new_container(session_id: UUID, generation: int, app: str) -> dict[str, object]:
    """A container's row from the moment it is wanted; its name makes its creation idempotent."""
    return {
        "session_id": session_id,
        "generation": generation,
        "name": f"roost-{session_id}-{generation}",
        "app": app,
        "state": ContainerState.UNSPECIFIED,
    }


def _running(boot_id: str | None) -> dict[str, object]:
    """A container's columns after a boot; its start event is looked at when it is next seen."""
    return {
        "state": ContainerState.STARTED,
        "boot_id": boot_id,
        "boot_time": None,
        "start_time": NOW,
        "cordoned": False,
    }


def _proved(rung: Rung, booted: Booted, *, keeps_files: bool) -> Landing:
    """What a boot brought back: the boot id decides, not the rung that was meant."""
    if booted.memory_preserved:
        return Landing(Outcome.RESUMED, Continuity.MEMORY, True, booted.boot_id)
    files = Continuity.FILESYSTEM if keeps_files else Continuity.NONE
    if booted.memory_preserved is False:
        return Landing(Outcome.RESTARTED, files, True, booted.boot_id)
    outcome = Outcome.RESUMED if rung is Rung.RESUME else Outcome.RESTARTED
    return Landing(outcome, files, False, booted.boot_id)


def _reason(booted: Booted) -> str:
    if booted.memory_preserved is None:
        return "BOOT_ID_UNKNOWN"
    return "BOOT_ID_EQUAL" if booted.memory_preserved else "BOOT_ID_CHANGED"


def _capped(landing: Landing, most: Continuity) -> Landing:
    """The landing with no more claimed than `most`."""
    if landing.continuity <= most:
        return landing
    return Landing(landing.outcome, most, landing.verified, landing.boot_id)


def _stood(climb: Climb) -> bool:
    """Whether the container that runs is one that the user has something in."""
    return climb.container.start_time is not None


def _with(change: Change, tried: dict[str, object]) -> Change:
    """The same change, its decision saying what was tried."""
    return Change(
        change.session_id,
        change.epoch,
        change.session,
        change.container,
        {**change.decision, **tried},
        change.decision_id,
    )


def _back_to_rest(
    session: Session, error: RoostError, climb: Climb, tried: dict[str, object]
) -> Change:
    """PAUSED, as deep as is known: without a container where that was found lost."""
    lost = bool(climb.lost) or ConditionType.CONTAINER_LOST in climb.found
    depth = PauseDepth.CHECKPOINT if lost else session.pause_depth or PauseDepth.SUSPENDED
    columns = outcomes.paused(session, depth)
    columns["pause_time"] = session.pause_time or NOW
    columns["verified_at"] = None
    if lost:
        columns["conditions"] = outcomes.marked(climb.found, climb.now)
    # Only the generation that was proved lost; one that was created since may well run.
    gone = climb.container.generation in climb.lost
    # Whether it came up is not known where the provider did not say.
    unknown: dict[str, object] = {"state": ContainerState.UNKNOWN}
    return Change(
        session.session_id,
        session.epoch,
        session=columns,
        container=outcomes.GONE if gone else unknown,
        decision={**outcomes.refused(error), **tried},
        decision_id=session.decision_id,
    )


def _ended(
    session: Session, error: RoostError, container: Container, tried: dict[str, object]
) -> Change:
    """A session that never stood. Its container, if the provider made one, is to be destroyed."""
    never = container.container_id is None and not isinstance(error, Retryable)
    return Change(
        session.session_id,
        session.epoch,
        session=outcomes.ended(session, EndReason.CREATE_FAILED, None),
        container=outcomes.GONE if never else {"wanted": False},
        decision={**outcomes.refused(error), **tried},
        decision_id=session.decision_id,
    )
