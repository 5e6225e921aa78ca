"""What a start's decision becomes: committed with its work, or at once, and answered with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from session_service import errors
from session_service.lifecycle.joining import Answer, raise_recorded
from session_service.storage import decisions

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from session_service.domain.session import Session
    from session_service.lifecycle.case import Case
    from session_service.lifecycle.first_steps import FirstSteps
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.takeover import Work
    from session_service.storage.database import Database
    from session_service.storage.decisions import NewDecision


class Answering:
    """Writes the decisions of starts, and answers with them."""

    def __init__(self, database: Database, work: Work, joining: Joining) -> None:
        self._database = database
        self._work = work
        self._joining = joining

    async def carried(
        self,
        intent: Coroutine[Any, Any, Session | None],
        decision: NewDecision,
        steps: FirstSteps | None = None,
    ) -> Answer | None:
        """Commit the intent, do the work in a task that outlives this call, wait for its answer.

        With the commit the call's first `steps` are done. None where somebody else was first. Any:
        what coroutines send and receive, unused.
        """
        task = await self._work.commit(intent)
        if task is None:
            return None
        if steps is not None:
            steps.step_back()
        await asyncio.wait({task})
        written = await decisions.get(self._database, decision.decision_id)
        if written is None:
            raise errors.ProviderUnavailable("the start's decision is no longer kept; try again")
        finished = await self._joining.finished(written)
        raise_recorded(finished)
        return await self._joining.answer(finished)

    async def append(
        self, case: Case, decision: NewDecision, *, made: bool = True
    ) -> Answer | None:
        """Append a finished decision and answer with it; None where its request id is taken.
        `made` says whether it carries the user's choice out: a refusal leaves that to be made.
        """
        also = case.also(decision.decision_id) if made and decision.error is None else None
        written = await decisions.append_once(self._database, decision, also)
        if written is None:
            return None
        raise_recorded(written)
        return await self._joining.answer(written)
