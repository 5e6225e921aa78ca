"""PreviewStart: what a start would do now. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from session_service.domain import plans
from session_service.lifecycle.case import Case
from session_service.lifecycle.choosing import ANSWER_ERRORS
from session_service.storage import sessions
from session_service.vault.lines import candidates

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.choice import Candidate
    from session_service.domain.session import Record
    from session_service.errors import RoostError
    from session_service.lifecycle.choosing import Choosing
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.intents import Start
    from session_service.lifecycle.policies import Policies
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Previewed:
    """What a start would do now."""

    record: Record | None
    plan: plans.Decision | None
    """None where the user's answer would be refused, by `error`."""
    candidates: tuple[Candidate, ...]
    error: RoostError | None = None


class Previewing:
    """Decides as a start would, and leaves it at that."""

    def __init__(
        self,
        database: Database,
        looker: Looker,
        policies: Policies,
        choosing: Choosing,
        freshness: timedelta,
    ) -> None:
        self._database = database
        self._looker = looker
        self._policies = policies
        self._choosing = choosing
        self._freshness = freshness

    async def preview(self, start: Start) -> Previewed:
        """What a start would do now. Looks, where it would look."""
        record = await sessions.live_at(self._database, start.key)
        rules = await self._policies.of(start.key)
        saved = await candidates(self._database, None if record is None else record.session)
        case = Case(start, record, None, rules, checkpoints=saved)
        found = () if record is None else await self._choosing.candidates(case, record)
        try:
            case = await self._choosing.answered(case)
        except ANSWER_ERRORS as error:
            return Previewed(record, None, found, error)
        plan = case.decide(self._freshness)
        if isinstance(plan, plans.Look) and record is not None:
            evidence = await self._looker.glance(record)
            plan = replace(case, evidence=evidence).decide(self._freshness)
        return Previewed(record, plan, found)
