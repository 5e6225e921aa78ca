"""PreviewStart: makes the plan that a start would have now, and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from session_service.checkpoints.stream import candidates
from session_service.domain import plans
from session_service.start.choice import ANSWER_ERRORS
from session_service.start.facts import Facts
from session_service.storage.session import reads

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.plans import Candidate
    from session_service.domain.session import Record
    from session_service.errors import RoostError
    from session_service.observe.probe import Probe
    from session_service.policy.service import PolicyService
    from session_service.start.choice import Choices
    from session_service.start.facts import Start
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Previewed:
    """The plan that a start would have now."""

    record: Record | None
    plan: plans.Decision | None
    """None if the start would refuse the user's answer; `error` says why."""
    candidates: tuple[Candidate, ...]
    error: RoostError | None = None


class Previewing:
    """Decides as a start does, and commits nothing."""

    def __init__(
        self,
        database: Database,
        probe: Probe,
        policies: PolicyService,
        choices: Choices,
        freshness: timedelta,
    ) -> None:
        self._database = database
        self._probe = probe
        self._policies = policies
        self._choices = choices
        self._freshness = freshness

    async def preview(self, start: Start) -> Previewed:
        """The plan that a start would have now. Reads the provider if the start would."""
        record = await reads.live_at(self._database, start.key)
        rules = await self._policies.of(start.key)
        saved = await candidates(self._database, None if record is None else record.session)
        facts = Facts(start, record, None, rules, checkpoints=saved)
        found = () if record is None else await self._choices.candidates(facts, record)
        try:
            if facts.start.token:
                facts = await self._choices.answered(facts)
            else:
                facts = facts.with_preference()
        except ANSWER_ERRORS as error:
            return Previewed(record, None, found, error)
        plan = facts.decide(self._freshness)
        if isinstance(plan, plans.Observe) and record is not None:
            evidence = await self._probe.observe_only(record)
            plan = replace(facts, evidence=evidence).decide(self._freshness)
        return Previewed(record, plan, found)
