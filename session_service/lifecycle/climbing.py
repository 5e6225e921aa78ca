"""Climbing the ladder: the work of a start, from a committed intent to its outcome.

Every step can be done again: a taker-over looks at what is true and goes on from there. Create is
idempotent by name, resume by what runs; results are written under the transition's epoch.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import keeping
from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.asked import least
from session_service.domain.fingerprint import Carrier
from session_service.domain.rungs import BEST_OF, rungs_for
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    PauseDepth,
    Rung,
)
from session_service.errors import ContinuityUnavailable, ProviderUnavailable, RoostError
from session_service.lifecycle.booting import Booter
from session_service.lifecycle.climb import (
    Climb,
    InDoubt,
    Landing,
    LessSurvived,
    NothingToRestore,
    RungLost,
)
from session_service.lifecycle.creating import Creator
from session_service.lifecycle.landing import Lander
from session_service.lifecycle.notes import Notes
from session_service.lifecycle.ownership import Held, OwnershipLost
from session_service.lifecycle.recreating import Recreator, kept
from session_service.lifecycle.removing import Remover
from session_service.lifecycle.rungs import Rungs
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import sessions

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.session import Record
    from session_service.domain.wish import Recreate
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.ownership import Ownership
    from session_service.lifecycle.restoring import Restorer
    from session_service.lifecycle.turns import Turns
    from session_service.ports import Containers, Previews
    from session_service.storage.database import Database


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
        self._turns = turns
        self._notes = notes = Notes(database)
        booter = Booter(containers, previews, looker)
        remover = Remover(containers, looker)
        creator = Creator(database, containers, installation_id, notes, booter, remover)
        self._rungs = Rungs(containers, booter, creator, restorer)
        self._recreator = Recreator(containers, notes, booter, remover, restorer)
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
                    await self._notes.reread(climb)
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
            await self._recreator.hand_over(climb)
        await self._recreator.take_away(climb, wanted)
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
                return await self._rungs.attempt(climb, rung)
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
