"""Putting containers to rest: the work of a pause and of an end, from intent to outcome.

It runs under the container's lease at the provider, whose nonce is the fencing token: a taker-over
first takes the lease, or waits it out, so that a late request of the old owner is refused there.
What was observed is what is written, not what was asked for.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service.domain import keeping
from session_service.domain.deepening import deepens
from session_service.domain.session import Cause, ContainerState, PauseDepth, Session
from session_service.domain.states import State, Transition
from session_service.errors import (
    ProviderUnavailable,
    Retryable,
    RoostError,
    SuspendFailedStillRunning,
    SuspendUnsupported,
)
from session_service.lifecycle import outcomes, rested, saving
from session_service.lifecycle.evidence import LOOK_TIMEOUT, address
from session_service.lifecycle.ownership import Held, OwnershipLost
from session_service.lifecycle.rested import DEPTHS, OVER, Rest, Task, depth_of
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import sessions, transitions
from session_service.storage.assignments import NOW
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.saving import Saving
    from session_service.lifecycle.turns import Turns
    from session_service.ports import Containers
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Beyond another's machine lease, in s, before it counts as held by somebody who is not us.
LEASE_PATIENCE = 5.0
#: Why what was to rest deeper does not.
CAME = "somebody came while its rest was to be deepened"


class Rester:
    """Does the work of pauses and ends."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        looker: Looker,
        lag_window: timedelta,
        machine_lease: timedelta,
        turns: Turns,
        saving: Saving,
    ) -> None:
        """`machine_lease` is how long a lease at the provider lasts, in whole seconds."""
        self._database = database
        self._containers = containers
        self._looker = looker
        self._lag = lag_window.total_seconds()
        self._lease = machine_lease.total_seconds()
        self._turns = turns
        self._saving = saving

    async def carry_out(self, held: Held) -> None:
        """Pause or end, and write down what came of it. Raises OwnershipLost."""
        task = await self._read(held)
        if task is None:
            return
        try:
            async with self._turns.turn(task.session, held) as turn:
                # While it waited somebody may have come to a session that was to rest as idle.
                again = await self._read(held) if turn.waited else task
                if again is not None:
                    await self._put_to_rest(again)
        except RoostError as error:
            await self._fail(task, error)
        except (LeaseHeld, LeaseLost) as error:
            await self._fail(task, ProviderUnavailable(f"{error}; try again"))
        except ContainerAbsent:
            await self._absent(task)

    async def _read(self, held: Held) -> Task | None:
        """The transition as it is in the rows; None where there is no container, which settles it.

        Raises OwnershipLost.
        """
        record = await sessions.find(self._database, held.session_id)
        if record is None or record.session.epoch != held.epoch:
            raise OwnershipLost
        session, container = record.session, record.container
        if container is None or container.destroy_time is not None:
            saved = container is not None and not container.wanted
            await self._settle_gone(held, session, record.now, gone=False, saved=saved)
            return None
        return Task(held, session, container, record.now)

    async def _put_to_rest(self, task: Task) -> None:
        named = await self._named(task)
        if named is None:
            await self._settle_gone(task.held, task.session, task.now, gone=True)
        else:
            await self._work(named)

    async def _named(self, task: Task) -> Task | None:
        """The task with its container's id; None where the provider certainly made none.

        An id that was never recorded says nothing: the create's answer may have been lost.
        """
        if task.container.container_id is not None:
            return task
        seen = await self._looker.find(task.container)
        if seen is None:
            return None
        where = seen.address
        found = {"container_id": where.container_id, "app": where.app}
        change = Change(task.held.session_id, task.held.epoch, container=found, advance=False)
        await self._write(change)
        known = replace(task.container, container_id=where.container_id, app=where.app)
        return replace(task, container=known)

    async def _work(self, task: Task) -> None:
        ending = task.session.transition is Transition.END
        if _no_longer_idle(task):
            await self._write(outcomes.gone_back(task.session, None))
            return
        if await self._is_wanted_again(task):
            return
        saved = await self._saved(task)
        if saved is None:
            return
        task = saved
        nonce = await self._containers.acquire_lease(
            address(task.container),
            ttl=self._lease,
            wait=min(self._lease + LEASE_PATIENCE, task.held.left),
            timeout=task.held.left,
        )
        if await self._came_meanwhile(task, nonce):
            return
        if task.session.transition is Transition.PURGE or task.target is PauseDepth.CHECKPOINT:
            await self._containers.destroy(address(task.container), nonce, timeout=task.held.left)
            kept = task.session.transition is Transition.PAUSE
            await self._settle_gone(task.held, task.session, task.now, gone=True, saved=kept)
            return
        if ending:
            await self._containers.cordon(address(task.container), nonce, timeout=task.held.left)
        try:
            rest = Rest(await self._rest(task, nonce, ending=ending), cordoned=ending)
        except (RoostError, ContainerAbsent) as error:
            if not isinstance(error, Retryable):
                await self._release(task, nonce)
            raise
        # Before the outcome is written: whoever waits for that may start the machine at once.
        await self._release(task, nonce)
        await self._settle(task, rest)

    async def _is_wanted_again(self, task: Task) -> bool:
        """Whether somebody came to what was to rest deeper; then it does not. What another owner
        began may run because that one woke it.
        """
        if not deepens(task.session) or not task.container.wanted:
            return False
        if _came(task):
            await self._write(rested.awake(task, CAME))
            return True
        if task.held.taken_over:
            return False
        seen = await self._containers.get(address(task.container), timeout=LOOK_TIMEOUT)
        if seen.state is not ContainerState.STARTED or task.container.cordoned:
            # What is out of routing was not woken by traffic.
            return False
        await self._write(outcomes.woken(task.session, "its container was found running"))
        return True

    async def _came_meanwhile(self, task: Task, nonce: str) -> bool:
        """Whether somebody came to what is to rest deeper while its lease was waited for."""
        if not deepens(task.session):
            return False
        again = await self._read(task.held)
        if again is None:
            return True
        if not again.container.wanted or not _came(again):
            return False
        await self._release(task, nonce)
        await self._write(rested.awake(replace(again, saved=task.saved), CAME))
        return True

    async def _saved(self, task: Task) -> Task | None:
        """The task once the state is saved that is to be. Where that fails the container stays: it
        is suspended, or rests as it did, and why is told. None where somebody came meanwhile.
        """
        if saving.wanted(task.held, task.session, task.container):
            saved = await self._saving.save(task.held, task.session, task.container)
            again = await self._read(task.held)
            if again is None:
                return None
            task = replace(again, saved=saved)
            if await self._let_go(task):
                return None
            if saved.columns:
                # Before it is put to rest: whoever takes over would wake it in vain, or worse.
                await self._write(_noted(task))
            if saved.error is not None:
                return rested.shallower(task)
        if task.session.transition is Transition.PAUSE and task.target is PauseDepth.CHECKPOINT:
            task = replace(task, session=await self._write(rested.free(task)))
        return task

    async def _let_go(self, task: Task) -> bool:
        """Whether somebody came while the state was saved, and the session is theirs again."""
        if _no_longer_idle(task):
            await self._write(outcomes.gone_back(task.session, None))
            return True
        runs = task.saved.woken or not deepens(task.session)
        in_use = runs and await self._saving.in_use(task.session, task.container)
        if deepens(task.session):
            if in_use or _came(task):
                await self._write(rested.awake(task, CAME))
                return True
            return False
        if in_use:
            await self._write(outcomes.gone_back(task.session, None, last_active_time=NOW))
        return in_use

    async def _release(self, task: Task, nonce: str) -> None:
        """Give the lease back once it is known what came of the last request under it.

        A taker-over lets its lease run out instead, so that a late request of the old owner still
        meets it.
        """
        if not task.held.taken_over:
            where = address(task.container)
            await self._containers.release_lease(where, nonce, timeout=LOOK_TIMEOUT)

    # --- provider ------------------------------------------------------------------------------

    async def _rest(self, task: Task, nonce: str, *, ending: bool) -> PauseDepth | None:
        """Bring it to rest, and say how deep it rests; None where it runs on."""
        if task.session.prior_state is State.PAUSED:
            seen = await self._containers.get(address(task.container), timeout=LOOK_TIMEOUT)
            if seen.state in DEPTHS:
                depth = DEPTHS[seen.state]
                if ending or task.unsaved is not None or depth is task.target:
                    return depth
        elif task.held.taken_over and not ending and task.unsaved is None:
            return await self._observe(task)
        try:
            return depth_of(await self._ask(task, nonce))
        except SuspendUnsupported:
            # Nobody is there to be asked: files are kept, and the loss of memory is told.
            if not ending and task.session.cause is not Cause.IDLE:
                raise
            seen = await self._containers.stop(
                address(task.container), nonce, timeout=task.held.left
            )
            return depth_of(seen.state)

    async def _ask(self, task: Task, nonce: str) -> ContainerState:
        where, timeout = address(task.container), task.held.left
        if task.target is PauseDepth.STOPPED:
            return (await self._containers.stop(where, nonce, timeout=timeout)).state
        return (await self._containers.suspend(where, nonce, timeout=timeout)).state

    async def _observe(self, task: Task) -> PauseDepth | None:
        """What the old owner's request came to. Under our lease no late one can change it."""
        where = address(task.container)
        resting = await self._containers.wait_resting(where, timeout=max(1.0, self._lag))
        if resting is not None:
            return depth_of(resting)
        return depth_of((await self._containers.get(where, timeout=LOOK_TIMEOUT)).state)

    # --- outcomes ------------------------------------------------------------------------------

    async def _settle(self, task: Task, rest: Rest) -> None:
        session = task.session
        if session.transition is Transition.END:
            await self._write(rested.ended(task, rest))
            return
        if rest.depth is None:
            if task.container.cordoned:
                # It was brought back from its end and woken before anybody came: it is in use now.
                await self._containers.uncordon(address(task.container), timeout=task.held.left)
            error = SuspendFailedStillRunning(
                "the container was found still running after the pause; it is used as it is. "
                "Pause again, or pause with depth STOPPED"
            )
            await self._write(rested.still_running(task, error))
            return
        await self._write(rested.paused(task, rest.depth))

    async def _settle_gone(
        self, held: Held, session: Session, now: datetime, *, gone: bool, saved: bool = False
    ) -> None:
        """There is no container (any more). What was `saved` is not lost."""
        await self._write(rested.gone(session, now, destroyed=gone, saved=saved))

    async def _absent(self, task: Task) -> None:
        """It was not found: lost if that is confirmed, unknown otherwise."""
        try:
            lost = await self._looker.confirm_absent(task.container)
        except RoostError as error:
            await self._fail(task, error)
            return
        if lost:
            again = await self._read(task.held)
            if again is not None:
                saved = not again.container.wanted
                await self._settle_gone(task.held, again.session, task.now, gone=True, saved=saved)
        else:
            await self._fail(
                task, ProviderUnavailable("the provider contradicts itself; try again")
            )

    async def _fail(self, task: Task, error: RoostError) -> None:
        """Not known how it is: the transition stays for whoever comes next. Refused: it runs on."""
        session = task.session
        _log.warning(
            "a container was not put to rest: %s",
            error,
            extra={
                "action": "rest",
                "session_id": str(session.session_id),
                "details": error.metadata,
            },
        )
        if isinstance(error, Retryable) or session.transition in OVER:
            await self._write(outcomes.left_open(session, error))
            return
        again = await self._read(task.held)
        if again is None:
            return
        if not again.container.wanted:
            # Its state is saved, and from then on anybody may destroy it: nothing to go back to.
            await self._write(outcomes.left_open(session, error))
            return
        await self._write(outcomes.gone_back(rested.as_before(task), error))

    async def _write(self, change: Change) -> Session:
        written = await transitions.write(self._database, change)
        if written is None:
            raise OwnershipLost
        return written


def _no_longer_idle(task: Task) -> bool:
    """Whether somebody came between the decision that it is idle and the request to suspend it."""
    session = task.session
    if session.cause is not Cause.IDLE or task.held.taken_over:
        return False
    return keeping.idle_time(session) > task.now


def _came(task: Task) -> bool:
    """Whether somebody came since a rest began to be deepened."""
    session = task.session
    return deepens(session) and session.last_active_time > session.change_time


def _noted(task: Task) -> Change:
    """Which checkpoint was taken of it, and of which boot."""
    session = task.session
    return Change(session.session_id, session.epoch, container=task.saved.columns, advance=False)
