"""The worker of a pause, an end and a purge: brings the container down and returns the outcome.

It works under the machine's lease at the provider. The lease's nonce is the fencing token of its
requests. A replica that takes the transition over acquires that lease first, which waits until the
lease of the earlier owner has run out. From then on the provider refuses a late request of the
earlier owner, so that the state that is observed under the lease does not change.

The lease is given back before the outcome is returned, since the next start may resume the machine
as soon as the outcome is committed. A replica that took the transition over does not give the lease
back, but lets it run out. Until then the lease rejects late requests of the earlier owner.

The outcome is the observed state, not the requested one.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service.bring_down import changes, checkpoint_first
from session_service.bring_down.changes import DEPTHS, OVER, BringDown, Observed, depth_of
from session_service.domain import next_action
from session_service.domain.next_action import deepens
from session_service.domain.session import Cause, ContainerState, PauseDepth, Session
from session_service.domain.states import State, Transition
from session_service.errors import (
    CheckpointMissing,
    ProviderUnavailable,
    Retryable,
    RoostError,
    SuspendFailedStillRunning,
    SuspendUnsupported,
)
from session_service.observe.probe import PROBE_TIMEOUT, address
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.checkpoint.removal import Kept
from session_service.storage.session import change as session_change
from session_service.storage.session import reads
from session_service.storage.session.change import NOW, Change
from session_service.storage.session.commit import Commit, Committed, commit
from session_service.transition import changes as transition_changes
from session_service.transition.ownership import Owned, OwnershipLost, lease_machine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from session_service.admission.limiter import Limiter
    from session_service.bring_down.checkpoint_first import CheckpointFirst
    from session_service.domain.session import Record
    from session_service.observe.probe import Probe
    from session_service.ports import Containers
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: The reason why a pause was not deepened, for the session's event.
USED = "the session was used while its pause was to be deepened"


class BringDownWorker:
    """Runs pauses, ends and purges."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        probe: Probe,
        lag_window: timedelta,
        machine_lease: timedelta,
        limiter: Limiter,
        saving: CheckpointFirst,
    ) -> None:
        """`machine_lease` is how long a lease at the provider lasts, in whole seconds."""
        self._database = database
        self._containers = containers
        self._probe = probe
        self._lag = lag_window.total_seconds()
        self._lease = machine_lease
        self._limiter = limiter
        self._saving = saving

    async def __call__(self, owned: Owned) -> Commit:
        """Bring the container down. Raises OwnershipLost, StorageUnavailable."""
        return Commit((await self._outcome(owned),))

    # A step below returns the bring-down for the next step, or the Change that is its outcome.

    async def _outcome(self, owned: Owned) -> Change:
        down = _begun(owned, owned.record)
        if isinstance(down, Change):
            return down
        try:
            async with self._limiter.permit(down.session, owned) as permit:
                # An idle session may have been used while its pause waited for the permit.
                again = await self._read(owned) if permit.waited else down
                return again if isinstance(again, Change) else await self._bring_down(again)
        except RoostError as error:
            return await self._failed(down, error)
        except (LeaseHeld, LeaseLost) as error:
            return await self._failed(down, ProviderUnavailable(f"{error}; try again"))
        except ContainerAbsent:
            return await self._absent(down)

    async def _read(self, owned: Owned) -> BringDown | Change:
        """The bring-down as the rows describe it now. Raises OwnershipLost, StorageUnavailable."""
        record = await reads.find(self._database, owned.session_id)
        if record is None or record.session.epoch != owned.epoch:
            raise OwnershipLost
        return _begun(owned, record)

    async def _bring_down(self, down: BringDown) -> Change:
        known = await self._with_container_id(down)
        if known is None:
            return changes.gone(down.session, down.now, destroyed=True, saved=False)
        if _no_longer_idle(known):
            return transition_changes.gone_back(known.session, None)
        if (outcome := await self._in_use_again(known)) is not None:
            return outcome
        saved = await self._save_first(known)
        if isinstance(saved, Change):
            return saved
        try:
            return await self._under_lease(saved)
        except RoostError as error:
            # Here and not in `_outcome`, which does not know whether the save woke the container.
            return await self._failed(saved, error)

    async def _with_container_id(self, down: BringDown) -> BringDown | None:
        """The same bring-down with its container's id; None if the provider has no such container.

        A missing id in the row is no proof of that: the answer to the create may have been lost.
        """
        if down.container.container_id is not None:
            return down
        seen = await self._probe.find(down.container)
        if seen is None:
            return None
        where = seen.address
        found = {"container_id": where.container_id, "app": where.app}
        await self._note(_note(down.session, container=found))
        known = replace(down.container, container_id=where.container_id, app=where.app)
        return replace(down, container=known)

    async def _under_lease(self, down: BringDown) -> Change:
        """Bring it down under the machine's lease.

        The lease is given back if the suspend or stop was answered, or a request was refused for
        good. If a request was not answered, it may still reach the machine, and the lease must
        outlast it. After a destroy there is nothing to give back.
        """
        where, ending = address(down.container), down.session.transition is Transition.END
        nonce = await lease_machine(self._containers, where, down.owned, self._lease)
        if (outcome := await self._used_before_lease(down, nonce)) is not None:
            return outcome
        purging = down.session.transition is Transition.PURGE
        destroys = purging or down.target is PauseDepth.CHECKPOINT
        depth = None
        try:
            if destroys:
                await self._containers.destroy(where, nonce, timeout=down.owned.left)
            else:
                if ending:
                    await self._containers.cordon(where, nonce, timeout=down.owned.left)
                depth = await self._pause(down, nonce, ending=ending)
        except (RoostError, ContainerAbsent) as error:
            if not isinstance(error, Retryable):
                await self._release(down, nonce)
            raise
        if destroys:
            saved = down.session.transition is Transition.PAUSE
            return changes.gone(down.session, down.now, destroyed=True, saved=saved)
        await self._release(down, nonce)
        return await self._outcome_of(down, Observed(depth, cordoned=ending))

    async def _in_use_again(self, down: BringDown) -> Change | None:
        """The outcome if a pause is not to be deepened any more, since the session was used or its
        container runs. In a transition that was taken over a running container proves no use: the
        earlier owner may have woken it.
        """
        if not deepens(down.session) or not down.container.wanted:
            return None
        if _used(down):
            return await self._stays_awake(down)
        if down.owned.taken_over:
            return None
        seen = await self._containers.get(address(down.container), timeout=PROBE_TIMEOUT)
        if seen.state is not ContainerState.STARTED or down.container.cordoned:
            # Traffic does not wake a container that is out of routing.
            return None
        return transition_changes.woken(down.session, "its container was found running")

    async def _used_before_lease(self, down: BringDown, nonce: str) -> Change | None:
        """The outcome if the session was used while the deepening of its pause waited for the
        machine's lease.
        """
        if not deepens(down.session):
            return None
        again = await self._read(down.owned)
        if isinstance(again, Change):
            return again
        if not again.container.wanted or not _used(again):
            return None
        await self._release(down, nonce)
        return await self._stays_awake(replace(again, saved=down.saved))

    async def _stays_awake(self, down: BringDown) -> Change:
        """The outcome if the session was used while its pause was being deepened. In a transition
        that was taken over the earlier owner may have woken the container, so that the provider is
        read: no row may say that a container is paused while it runs.
        """
        if down.owned.taken_over and not down.saved.woken:
            seen = await self._containers.get(address(down.container), timeout=PROBE_TIMEOUT)
            woken = seen.state is ContainerState.STARTED
            down = replace(down, saved=replace(down.saved, woken=woken))
        if down.saved.woken:
            await self._into_routing(down)
        return changes.stays_awake(down, USED)

    async def _into_routing(self, down: BringDown) -> None:
        """Put the container of a session that becomes ACTIVE back into routing. It may be out of
        routing if the session was undeleted.
        """
        if down.container.cordoned:
            await self._containers.uncordon(address(down.container), timeout=down.owned.left)

    async def _save_first(self, down: BringDown) -> BringDown | Change:
        """Save the state, if it is to be saved, and return the bring-down. If that fails, or the
        checkpoint is deleted before the note that the container may go, the container is kept: it
        is suspended, or paused as deep as before, and the session gets the condition
        CHECKPOINT_FAILED.
        """
        if checkpoint_first.wanted(down.owned, down.session, down.container):
            saved = await self._saving.save(down.owned, down.session, down.container)
            again = await self._read(down.owned)
            if isinstance(again, Change):
                return again
            down = replace(again, saved=saved)
            if (outcome := await self._used_since(down)) is not None:
                return outcome
            if saved.columns:
                # Before it is brought down. Without the note a next owner would wake the container
                # again, to save the same state.
                await self._note(_note(down.session, container=saved.columns))
            if saved.error is not None:
                return changes.keeping_container(down)
        if down.session.transition is Transition.PAUSE and down.target is PauseDepth.CHECKPOINT:
            return await self._allow_destroy(down)
        return down

    async def _allow_destroy(self, down: BringDown) -> BringDown | Change:
        """Note that the container may be destroyed, unless the checkpoint that has its state was
        deleted meanwhile. Without such a checkpoint it has no state, or the note was written
        before.
        """
        note, checkpoint_id = changes.allow_destroy(down), down.saved.checkpoint_id
        if checkpoint_id is None:
            return replace(down, session=await self._note(note))
        done = await commit(self._database, Commit((Kept(checkpoint_id), note)), "note")
        if isinstance(done, Committed):
            return replace(down, session=done.session(note.session_id))
        again = await self._read(down.owned)
        if isinstance(again, Change):
            return again
        error = CheckpointMissing("the checkpoint was deleted before the container was destroyed")
        return changes.keeping_container(replace(again, saved=replace(down.saved, error=error)))

    async def _used_since(self, down: BringDown) -> Change | None:
        """The outcome if the session was used while its state was saved: its former state."""
        if _no_longer_idle(down):
            return transition_changes.gone_back(down.session, None)
        runs = down.saved.woken or not deepens(down.session)
        in_use = runs and await self._saving.in_use(down.session, down.container)
        if deepens(down.session):
            return await self._stays_awake(down) if in_use or _used(down) else None
        return (
            transition_changes.gone_back(down.session, None, last_active_time=NOW)
            if in_use
            else None
        )

    async def _release(self, down: BringDown, nonce: str) -> None:
        """Give the machine's lease back, unless the transition was taken over."""
        if not down.owned.taken_over:
            where = address(down.container)
            await self._containers.release_lease(where, nonce, timeout=PROBE_TIMEOUT)

    async def _note(self, change: Change) -> Session:
        """Write a note before the outcome. Raises OwnershipLost if the epoch has advanced."""
        written = await session_change.write(self._database, change)
        if written is None:
            raise OwnershipLost
        return written

    # --- provider ------------------------------------------------------------------------------

    async def _pause(self, down: BringDown, nonce: str, *, ending: bool) -> PauseDepth | None:
        """Suspend or stop it; the depth that was observed, None if it still runs."""
        if down.session.prior_state is State.PAUSED:
            seen = await self._containers.get(address(down.container), timeout=PROBE_TIMEOUT)
            if seen.state in DEPTHS:
                depth = DEPTHS[seen.state]
                if ending or down.save_error is not None or depth is down.target:
                    return depth
        elif down.owned.taken_over and not ending and down.save_error is None:
            return await self._observe(down)
        try:
            return depth_of(await self._request_pause(down, nonce))
        except SuspendUnsupported:
            # There is no caller to ask. A stop keeps the files, and a condition reports the loss of
            # memory.
            if not ending and down.session.cause is not Cause.IDLE:
                raise
            seen = await self._containers.stop(
                address(down.container), nonce, timeout=down.owned.left
            )
            return depth_of(seen.state)

    async def _request_pause(self, down: BringDown, nonce: str) -> ContainerState:
        where, timeout = address(down.container), down.owned.left
        if down.target is PauseDepth.STOPPED:
            return (await self._containers.stop(where, nonce, timeout=timeout)).state
        return (await self._containers.suspend(where, nonce, timeout=timeout)).state

    async def _observe(self, down: BringDown) -> PauseDepth | None:
        """The result of the earlier owner's request; this lease fences a late one."""
        where = address(down.container)
        paused = await self._containers.wait_paused(where, timeout=max(1.0, self._lag))
        if paused is not None:
            return depth_of(paused)
        return depth_of((await self._containers.get(where, timeout=PROBE_TIMEOUT)).state)

    # --- outcomes ------------------------------------------------------------------------------

    async def _outcome_of(self, down: BringDown, observed: Observed) -> Change:
        if down.session.transition is Transition.END:
            return changes.ended(down, observed)
        if observed.depth is not None:
            return changes.paused(down, observed.depth)
        await self._into_routing(down)
        error = SuspendFailedStillRunning(
            "the container still runs after the pause; the session stays active. "
            "Pause again, or pause with depth STOPPED"
        )
        return changes.still_running(down, error)

    async def _absent(self, down: BringDown) -> Change:
        """The outcome if the container was not found: lost if that is confirmed, else unknown."""
        try:
            lost = await self._probe.confirm_absent(down.container)
        except RoostError as error:
            return await self._failed(down, error)
        if not lost:
            doubt = ProviderUnavailable.contradicting()
            return await self._failed(down, doubt)
        again = await self._read(down.owned)
        if isinstance(again, Change):
            return again
        saved = not again.container.wanted
        return changes.gone(again.session, down.now, destroyed=True, saved=saved)

    async def _failed(self, down: BringDown, error: RoostError) -> Change:
        """The outcome after an error. After a retryable error the container's state is not known:
        the transition stays open for its next owner, as an end or a purge does after any error. If
        the provider refused the pause, the session returns to its former state; it becomes ACTIVE
        if its container was woken to be saved and still runs. Raises ContainerAbsent, RoostError.
        """
        session = down.session
        _log.warning(
            "a container was not brought down: %s",
            error,
            extra={
                "action": "bring_down",
                "session_id": str(session.session_id),
                "details": error.metadata,
            },
        )
        if isinstance(error, Retryable) or session.transition in OVER:
            return transition_changes.left_open(session, error)
        again = await self._read(down.owned)
        if isinstance(again, Change):
            return again
        if not again.container.wanted:
            # Its state is saved, and any replica may destroy it: it cannot become ACTIVE again.
            return transition_changes.left_open(session, error)
        if down.saved.woken:
            seen = await self._containers.get(address(down.container), timeout=PROBE_TIMEOUT)
            if seen.state is ContainerState.STARTED:
                await self._into_routing(down)
                return changes.left_running(down, error)
        return transition_changes.gone_back(changes.at_prior_depth(down), error)


def _begun(owned: Owned, record: Record) -> BringDown | Change:
    """The bring-down that the rows describe, or its outcome if there is no container."""
    session, container = record.session, record.container
    if container is None or container.destroy_time is not None:
        saved = container is not None and not container.wanted
        return changes.gone(session, record.now, destroyed=False, saved=saved)
    return BringDown(owned, session, container, record.now)


def _no_longer_idle(down: BringDown) -> bool:
    """Whether an idle session was used after its pause was decided and before the request to
    suspend its container.
    """
    session = down.session
    if session.cause is not Cause.IDLE or down.owned.taken_over:
        return False
    return next_action.idle_time(session) > down.now


def _used(down: BringDown) -> bool:
    """Whether the session was used since its pause began to be deepened."""
    session = down.session
    return deepens(session) and session.last_active_time > session.change_time


def _note(session: Session, container: Mapping[str, object]) -> Change:
    """A note: columns of the container's row that are known before the outcome."""
    return Change(session.session_id, session.epoch, container=container, advance=False)
