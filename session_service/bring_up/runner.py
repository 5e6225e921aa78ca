"""The worker of a start: brings the container up, rung by rung, and returns the outcome.

Every step can be repeated: an owner that takes the start over reads the actual state and continues
from there. A create is idempotent by the container's name, a resume by whether the container runs.
Every note is fenced by the transition's epoch.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from session_service.bring_up import outcome
from session_service.bring_up.attempt import (
    BringUp,
    InDoubt,
    LessSurvived,
    Notes,
    NothingToRestore,
    Result,
    RungLost,
)
from session_service.bring_up.boot import Booter
from session_service.bring_up.create import Creator
from session_service.bring_up.recreate import Recreator, recreated_result
from session_service.bring_up.strategies import Strategies
from session_service.domain import next_action
from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.ladder import BEST_OF, rungs_for
from session_service.domain.session import (
    AttemptResult,
    ConditionType,
    PauseDepth,
    Rung,
)
from session_service.domain.spec import Carrier
from session_service.domain.wish import least
from session_service.errors import ContinuityUnavailable, ProviderUnavailable, RoostError
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.transition.changes import replaced_by
from session_service.transition.ownership import Owned, OwnershipLost

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.admission.limiter import Limiter
    from session_service.bring_up.restore import Restorer
    from session_service.domain.session import Record
    from session_service.domain.wish import Recreate
    from session_service.observe.discard import Discarder
    from session_service.observe.probe import Probe
    from session_service.ports import Containers, Previews
    from session_service.storage.database import Database
    from session_service.storage.session.change import Terms
    from session_service.storage.session.commit import Commit


class BringUpRunner:
    """Runs starts."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        previews: Previews,
        probe: Probe,
        terms: Terms,
        installation_id: UUID,
        limiter: Limiter,
        restorer: Restorer,
        discarder: Discarder,
    ) -> None:
        """`terms` are the terms of a follow-on transition that an outcome begins."""
        self._restorer = restorer
        self._database = database
        self._terms = terms
        self._limiter = limiter
        self._notes = notes = Notes(database)
        booter = Booter(containers, previews, probe)
        creator = Creator(database, containers, installation_id, notes, booter, discarder)
        self._strategies = Strategies(booter, creator, restorer)
        self._recreator = Recreator(containers, notes, booter, discarder, restorer)

    async def __call__(self, owned: Owned) -> Commit:
        """Bring the container up. Raises OwnershipLost; and StorageUnavailable, but only before the
        first request to the provider.
        """
        bring_up = await self._begin(owned)
        permit, recreate = bring_up.permit, bring_up.wish.recreate
        try:
            async with permit:
                if permit.waited:
                    await self._notes.reread(bring_up)
                if recreate is not None:
                    result = await self._recreate(bring_up, recreate)
                else:
                    if bring_up.may_restore:
                        bring_up.checkpoints = await self._restorer.checkpoints_for(
                            bring_up.session
                        )
                    result = await self._try_rungs(bring_up)
        except LessSurvived as less:
            return outcome.less_survived(bring_up, less)
        except RoostError as error:
            return outcome.failed(bring_up, error, self._terms)
        return outcome.succeeded(bring_up, result, self._terms)

    async def _begin(self, owned: Owned) -> BringUp:
        """The bring-up as the rows describe it.

        The replaced session is read here and not with the outcome. Its epoch does not advance while
        its successor's start is in flight, so that the read stays valid. And the outcome can then
        be decided without the database, which may not answer at that time.
        """
        record = owned.record
        if record.container is None:
            raise OwnershipLost
        session = record.session
        wish, policy = wishes.load(session.wish), policies.load(session.policy)
        # A new session has no state yet, so that there is no least continuity to check.
        asked = session.prior_state is not None and wish.checkpoint_id is None
        wanted = least(wish, policy) if asked else None
        permit = self._limiter.permit(session, owned)
        bring_up = BringUp(owned, session, record.container, wanted, record.now, permit, wish)
        if _lost(record) and (wish.recreate is None or wish.recreate.by is Carrier.CHECKPOINT):
            bring_up.conditions = (ConditionType.CONTAINER_LOST,)
        bring_up.replaced = await replaced_by(self._database, session)
        return bring_up

    async def _recreate(self, bring_up: BringUp, wanted: Recreate) -> Result:
        """Recreate the container from another spec, with the state of the old one if it is kept."""
        if wanted.by is Carrier.CHECKPOINT:
            await self._recreator.save_before(bring_up)
        await self._recreator.destroy_old(bring_up, wanted)
        if wanted.by is Carrier.CHECKPOINT:
            bring_up.checkpoints = await self._restorer.checkpoints_for(bring_up.session)
        return recreated_result(bring_up, await self._try_rungs(bring_up), wanted)

    async def _try_rungs(self, bring_up: BringUp) -> Result:
        """Try the rungs that the rows allow, in order. A rung is tried only if the state that the
        rungs before it could bring back is lost.
        """
        for rung in _rungs(bring_up):
            if bring_up.required is not None and BEST_OF[rung] < bring_up.required:
                continue
            if rung is Rung.CREATE and bring_up.checkpoints:
                # There is a checkpoint, but new containers vanish before it is restored. An empty
                # container in its place would hide that state.
                break
            began = monotonic()
            try:
                return await self._strategies.attempt(bring_up, rung)
            except NothingToRestore:
                continue
            except InDoubt as doubt:
                bring_up.note(rung, AttemptResult.FAILED, doubt.cause.reason, began)
                raise
            except RungLost as lost:
                bring_up.note(rung, AttemptResult.FAILED, str(lost), began)
                bring_up.lost_generations.add(bring_up.container.generation)
                bring_up.running = False
                if bring_up.container.start_time is not None:
                    bring_up.conditions = (ConditionType.CONTAINER_LOST,)
            except LessSurvived:
                bring_up.note(rung, AttemptResult.DEGRADED, "BOOT_ID_CHANGED", began)
                raise
            except RoostError as error:
                bring_up.note(rung, AttemptResult.FAILED, error.reason, began)
                raise
            except (ContainerAbsent, LeaseHeld, LeaseLost) as error:
                bring_up.note(rung, AttemptResult.FAILED, "PROVIDER_BUSY", began)
                raise ProviderUnavailable(f"{error}; try again") from error
        if bring_up.required is None or bring_up.required <= BEST_OF[Rung.CREATE]:
            raise ProviderUnavailable("new containers vanish as they come up; try again")
        raise ContinuityUnavailable(
            "nothing is left that could bring back the requested continuity; "
            "start with a lower min_continuity to get a new container"
        )


def _lost(record: Record) -> bool:
    """Whether a container with the user's state is gone, though the state was not saved to let the
    container be destroyed.
    """
    session, container = record.session, record.container
    if next_action.lost(session, container):
        return True
    if container is None or container.destroy_time is None or container.start_time is None:
        return False
    return container.wanted and session.pause_depth is not PauseDepth.CHECKPOINT


def _rungs(bring_up: BringUp) -> tuple[Rung, ...]:
    """The rungs to try, in order. Rungs that create a container are in it twice: if the container
    vanishes before it is up, another one is created, as the next generation.
    """
    if bring_up.wish.checkpoint_id is not None:
        return (Rung.RESTORE, Rung.RESTORE)
    rungs = rungs_for(bring_up.session, bring_up.container, saved=bool(bring_up.checkpoints))
    new = (Rung.RESTORE, Rung.CREATE)
    return tuple(again for rung in rungs for again in ((rung, rung) if rung in new else (rung,)))
