"""One look at a start: what is wanted, what is known, what is in force, what was chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from session_service.domain import choice, effective, fingerprint, ladder, plans
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.asked import mode_of
from session_service.domain.changed_spec import changed
from session_service.domain.choice import CHOSEN, REMEMBERED
from session_service.domain.effective import NOTHING, Source
from session_service.domain.policy import Persistence
from session_service.domain.rungs import restorable
from session_service.domain.session import Mode
from session_service.storage import choices
from session_service.storage.choices import Made

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.choice import Offered
    from session_service.domain.effective import InForce
    from session_service.domain.evidence import Evidence
    from session_service.domain.fingerprint import Change
    from session_service.domain.policy import Policy
    from session_service.domain.session import Record, Session
    from session_service.lifecycle.intents import Start
    from session_service.lifecycle.policies import Rules
    from session_service.storage.database import Also

    Spec = Mapping[str, Any]  # Any: JSON, as the proto maps it


@dataclass(frozen=True, slots=True)
class Case:
    """What a start decides by, as of one look."""

    start: Start
    record: Record | None
    """The live session at the key, or the one that was named."""
    evidence: Evidence | None
    rules: Rules
    made: Made | None = None
    """The choice that this start carries out: its user's answer, or what is kept of one."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """What the session could go back to."""

    @property
    def target(self) -> InForce:
        """What is in force for the session that is there; for a new one where none is."""
        if self.record is None:
            return self.rules.in_force(self.start.asked or NOTHING)
        row = effective.load(self.record.session.policy)
        return self.rules.for_session(row, self.start.asked)

    @property
    def policy(self) -> str | None:
        """What the row is to say from now on; None where it says that already."""
        if self.record is None or effective.load(self.record.session.policy) == self.target:
            return None
        return effective.dump(self.target)

    @property
    def change(self) -> Change | None:
        """How the spec that is wanted differs from what the session's container was made of."""
        if self.record is None:
            return None
        session = self.record.session
        wanted = self.wanted(session)
        if wanted is None:
            return None
        anew = wishes.load(session.wish).recreate
        if anew is not None:
            # It is just being made anew, and will be what that says.
            return fingerprint.change(specs.load(anew.spec), wanted)
        if fingerprint.fingerprint(wanted) == session.fingerprint:
            return None
        return fingerprint.change(specs.load(session.spec), wanted)

    @property
    def recreation(self) -> plans.Climb | None:
        """How going on would make the container anew, where what is wanted asks for that."""
        if self.record is None or self.change is None:
            return None
        wish = replace(self.start.wish, mode=Mode.CONTINUE, min_continuity=None)
        saved = restorable(self.checkpoints)
        plan = changed(wish, self.deciding, self.record, self.change, saved=saved)
        return plan if isinstance(plan, plans.Climb) else None

    def wanted(self, session: Session) -> Spec | None:
        """The spec that is wanted of this session: the start's, or where the session was made of
        the project's or the operator's, what that is now. None: whatever it has.
        """
        spec = self.start.spec
        if spec is None:
            now, source = self.rules.spec
            of = effective.load(session.policy).sources.get("spec")
            spec = now if of in (Source.PROJECT, Source.DEFAULT) and of is source else None
        return None if spec is None else specs.as_restored(spec, session.spec)

    def opened(self, replaced: Record | None) -> tuple[Spec | None, InForce]:
        """What a new session is made of, in place of `replaced`, and its policy."""
        spec, source = self.start.spec, Source.REQUEST
        if spec is None:
            spec, source = self.rules.spec
        kept: Source | None = source
        if spec is None and replaced is not None:
            spec = specs.load(replaced.session.spec)
            kept = effective.load(replaced.session.policy).sources.get("spec")
        return spec, self.rules.in_force(self.start.asked or NOTHING, kept)

    @property
    def deciding(self) -> Policy:
        """The policy that decides, with what the user prefers."""
        return choice.deciding(self.target.policy, self.rules.preference)

    @property
    def anew(self) -> bool:
        """Whether it is to begin anew, as the call says or the policy."""
        return mode_of(self.start.wish, self.deciding) is Mode.FRESH

    def decide(self, freshness: timedelta) -> plans.Decision:
        """What the ladder says."""
        return ladder.decide(
            self.start.wish,
            self.deciding,
            self.record,
            self.evidence,
            freshness,
            self.change,
            self.checkpoints,
        )

    def with_preference(self) -> Case:
        """The same, knowing that a kept preference decides it, if one does."""
        unnamed = self.start.wish.mode is Mode.UNSPECIFIED
        asks = self.target.policy.persistence is Persistence.ASK
        chosen = CHOSEN.get(self.rules.preference)
        if self.record is None or not (unnamed and asks) or chosen is None:
            return self
        made = Made(self.start.key, chosen, self.record.session.session_id)
        return replace(self, made=made)

    def with_answer(self, offered: Offered, token_hash: bytes) -> Case:
        """The same, carrying the user's answer out and nothing else."""
        start = self.start
        wish = replace(
            start.wish,
            mode=choice.MODE_OF[offered.choice],
            checkpoint_id=offered.checkpoint_id,
        )
        made = Made(
            start.key,
            offered.choice,
            offered.session_id,
            offered.offered,
            offered.checkpoint_id,
            token_hash,
            REMEMBERED[offered.choice] if start.remember else None,
            None if offered.choice is choice.Choice.CONTINUE else offered.start_count,
        )
        return replace(self, start=replace(start, wish=wish), made=made)

    def also(self, decision_id: UUID) -> Also | None:
        """What belongs into the transaction that commits this decision."""
        if self.made is None:
            return None
        return partial(choices.make, made=self.made, decision_id=decision_id)


def differing(start: Start, session: Session, case: Case | None) -> tuple[str, ...]:
    """Which parts of the spec that is wanted the session's container was not made of; `case` is
    None where nothing was read but the session.
    """
    wanted = start.spec if case is None else case.wanted(session)
    if wanted is None or fingerprint.fingerprint(wanted) == session.fingerprint:
        return ()
    return fingerprint.differing(specs.load(session.spec), wanted)
