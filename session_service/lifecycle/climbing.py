"""Climbing the ladder: the work of a start, from a committed intent to its outcome.

Every step can be done again: a taker-over looks at what is true and goes on from there. Create is
idempotent by name, resume by what runs; results are written under the transition's epoch.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import keeping
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.asked import least
from session_service.domain.checkpoint import Kind
from session_service.domain.fingerprint import Carrier
from session_service.domain.rungs import BEST_OF, rungs_for, untold
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    Container,
    ContainerState,
    Continuity,
    Outcome,
    PauseDepth,
    Rung,
)
from session_service.errors import (
    ContinuityUnavailable,
    ProviderUnavailable,
    Retryable,
    RoostError,
)
from session_service.lifecycle import claims, outcomes
from session_service.lifecycle.climb import (
    Climb,
    InDoubt,
    Landing,
    LessSurvived,
    NothingToRestore,
    RungLost,
    capped,
    proved,
    reason,
)
from session_service.lifecycle.evidence import address, labels
from session_service.lifecycle.intents import new_container
from session_service.lifecycle.landing import Lander
from session_service.lifecycle.ownership import Held, OwnershipLost
from session_service.lifecycle.recreating import Recreator, kept
from session_service.ports import Booted, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import commits, sessions, transitions
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Record
    from session_service.domain.wish import Recreate
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.ownership import Ownership
    from session_service.lifecycle.restoring import Restorer
    from session_service.lifecycle.turns import Turns
    from session_service.ports import Containers, Previews
    from session_service.storage.database import Database

#: Between tries to start a machine that somebody has leased, in s.
LEASE_PAUSE = 0.5
#: One exec for the guest's boot id, in s.
PROOF_TIMEOUT = 10.0


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
        turns: Turns,
        restorer: Restorer,
    ) -> None:
        self._restorer = restorer
        self._database = database
        self._containers = containers
        self._previews = previews
        self._looker = looker
        self._installation_id = installation_id
        self._turns = turns
        self._recreator = Recreator(containers, looker, restorer)
        self.lander = Lander(database, containers, looker, ownership)

    async def carry_out(self, held: Held) -> None:
        """Climb, and write down what came of it. Raises OwnershipLost, StorageUnavailable."""
        record = await sessions.find(self._database, held.session_id)
        if record is None or record.container is None or record.session.epoch != held.epoch:
            raise OwnershipLost
        session = record.session
        wish, policy = wishes.load(session.wish), policies.load(session.policy)
        # What is new has nothing to keep, so that nothing can be asked of it.
        asked = session.prior_state is not None and wish.checkpoint_id is None
        wanted = least(wish, policy) if asked else None
        turn = self._turns.turn(session, held)
        climb = Climb(held, session, record.container, wanted, record.now, turn, wish)
        if _lost(record) and (wish.recreate is None or wish.recreate.by is Carrier.CHECKPOINT):
            climb.found = (ConditionType.CONTAINER_LOST,)
        try:
            async with turn:
                if turn.waited:
                    await self._reread(climb)
                if wish.recreate is not None:
                    landing = await self._recreate(climb, wish.recreate)
                else:
                    climb.checkpoints = await self._restorer.choices(climb.session)
                    landing = await self._climb(climb)
            await self.lander.land(climb, landing)
        except LessSurvived as less:
            await self.lander.refuse_running(climb, less)
        except RoostError as error:
            await self.lander.fail(climb, error)

    async def _recreate(self, climb: Climb, wanted: Recreate) -> Landing:
        """A container of another spec, with what was kept of the one before it."""
        if wanted.by is Carrier.CHECKPOINT:
            await self._recreator.hand_over(climb, self._bring_up, self._write)
        await self._recreator.take_away(climb, wanted, self._write)
        if wanted.by is Carrier.CHECKPOINT:
            climb.checkpoints = await self._restorer.choices(climb.session)
        return kept(climb, await self._climb(climb), wanted)

    async def _climb(self, climb: Climb) -> Landing:
        """Try the rungs that the row says are left, each only after those before are lost."""
        for rung in _rungs(climb):
            if climb.least is not None and BEST_OF[rung] < climb.least:
                continue
            if rung is Rung.CREATE and climb.checkpoints:
                # There is state to go back to, and new containers vanish before they have it.
                break
            began = monotonic()
            try:
                return await self._try(climb, rung)
            except NothingToRestore:
                continue
            except InDoubt as doubt:
                climb.note(rung, AttemptResult.FAILED, doubt.cause.reason, began)
                raise
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
        match rung:
            case Rung.CREATE:
                return await self._create(climb)
            case Rung.RESTORE:
                return await self._restore(climb)
            case _:
                return await self._bring_back(climb, rung)

    # --- rungs ---------------------------------------------------------------------------------

    async def _bring_back(self, climb: Climb, rung: Rung) -> Landing:
        """Resume or restart the container that is there, and prove what survived in it."""
        began = monotonic()
        booted = await self._bring_up(climb)
        landing = proved(rung, booted, keeps_files=specs.keeps_files(climb.session.spec))
        if climb.session.loss_untold:
            # Its memory is whole since a boot that no answer has told of: what was there at the
            # last answer is gone all the same.
            landing = capped(landing, untold(climb.session))
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
        climb.note(rung, result, reason(booted), began)
        return landing

    async def _bring_up(self, climb: Climb) -> Booted:
        """Have the container that is there run, and answer."""
        container = climb.container
        booted = await self._boot(climb, container.boot_id)
        if container.cordoned:
            await self._containers.uncordon(address(container), timeout=climb.held.left)
        await self._ready(climb, container)
        return booted

    async def _restore(self, climb: Climb) -> Landing:
        """Bring back what was saved: into a new container, or, in a rollback, the one there is."""
        began = monotonic()
        checkpoint = await self._restorer.sound(climb)
        if climb.rolls_back:
            in_place = checkpoint.kind is Kind.APPLICATION
            booted = await self._bring_up(climb) if in_place else None
            await self._restorer.save_first(climb, checkpoint.kind)
            if booted is not None:
                await self._put_in_place(climb, checkpoint)
                return self._restorer.landed(climb, checkpoint, booted.boot_id, began)
            where = address(climb.container)
            await self._containers.destroy(where, None, timeout=climb.held.left)
        checkpoint, boot_id = await self._filled(climb, checkpoint)
        await self._ready(climb, climb.container)
        return self._restorer.landed(climb, checkpoint, boot_id, began)

    async def _put_in_place(self, climb: Climb, checkpoint: Checkpoint) -> None:
        try:
            await self._restorer.put(climb, checkpoint)
        except Retryable as error:
            raise InDoubt(error) from error

    async def _filled(self, climb: Climb, checkpoint: Checkpoint) -> tuple[Checkpoint, str | None]:
        """A new container with saved state in it: which, and its boot id."""
        if not climb.unborn:
            await self._want_container(climb)
            while not await self._restorer.mount(climb, checkpoint):
                checkpoint = await self._restorer.sound(climb)
        boot_id, _ = await self._new(climb)
        await self._restorer.put(climb, checkpoint)
        return checkpoint, boot_id

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
        """A new container, with nothing in it."""
        began = monotonic()
        boot_id, how = await self._new(climb)
        climb.note(Rung.CREATE, AttemptResult.SUCCEEDED, how, began)
        return Landing(Outcome.CREATED, Continuity.NONE, True, boot_id)

    async def _new(self, climb: Climb) -> tuple[str | None, str]:
        """Create a container, or adopt the one that an earlier owner created: its boot id, and
        which of the two, as a machine-readable word.
        """
        if climb.unborn:
            # By an owner that is gone: bring it up, it is still new.
            booted = await self._boot(climb, None)
            await self._ready(climb, climb.container)
            return booted.boot_id, "ADOPTED"
        await self._want_container(climb)
        await claims.when_free(
            self._containers, climb.held, climb.container.app, lambda: self._created(climb)
        )
        await self._wait_started(climb, climb.container)
        climb.up = True
        await self._ready(climb, climb.container)
        boot_id = await self._containers.read_boot_id(
            address(climb.container), timeout=min(PROOF_TIMEOUT, climb.held.left)
        )
        return boot_id, "CREATED"

    async def _created(self, climb: Climb) -> None:
        """Ask for the container that the row wants, and write down which it is."""
        session, container = climb.session, climb.container
        async with climb.turn.creating(container.app):
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

    async def _want_container(self, climb: Climb) -> None:
        """Where the last container is gone, commit the want of a new one before asking for it."""
        session, container = climb.session, climb.container
        if container.container_id is None and container.destroy_time is None:
            return
        if not container.wanted and container.destroy_time is None:
            # Its state was saved so that it could go: never two that run.
            await self._recreator.destroy(climb)
        gone = Change(session.session_id, session.epoch, container=outcomes.GONE, advance=False)
        if await transitions.write(self._database, gone) is None:
            raise OwnershipLost
        wanted = new_container(session.session_id, session.generation + 1, container.app)
        if (
            await commits.next_generation(self._database, session.session_id, session.epoch, wanted)
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
        climb.turn.step_back()
        if not await self._previews.wait_ready(container, climb.held.left):
            raise ProviderUnavailable(
                "the container runs, but its preview does not answer; look at the application's "
                "log, and try again"
            )

    # --- writing -------------------------------------------------------------------------------

    async def _write(self, climb: Climb, change: Change) -> None:
        """Write a note on the way. Raises OwnershipLost where the epoch has moved on."""
        noted = replace(change, advance=False)
        if await transitions.write(self._database, noted) is None:
            raise OwnershipLost
        await self._reread(climb)

    async def _reread(self, climb: Climb) -> None:
        record = await sessions.find(self._database, climb.held.session_id)
        if record is None or record.container is None or record.session.epoch != climb.held.epoch:
            raise OwnershipLost
        climb.session, climb.container, climb.now = record.session, record.container, record.now


def _lost(record: Record) -> bool:
    """Whether the container is gone that the user had something in, and not because its state was
    saved so that it could go.
    """
    session, container = record.session, record.container
    if keeping.lost(session, container):
        return True
    if container is None or container.destroy_time is None or container.start_time is None:
        return False
    return container.wanted and session.pause_depth is not PauseDepth.CHECKPOINT


def _rungs(climb: Climb) -> tuple[Rung, ...]:
    """The rungs to try, in order. A new container that vanishes as it comes up is made once more,
    as the next generation.
    """
    if climb.wish.checkpoint_id is not None:
        return (Rung.RESTORE, Rung.RESTORE)
    rungs = rungs_for(climb.session, climb.container, saved=bool(climb.checkpoints))
    new = (Rung.RESTORE, Rung.CREATE)
    return tuple(again for rung in rungs for again in ((rung, rung) if rung in new else (rung,)))
