"""The facts of a start: the request, the session's rows, the policy in force, the user's choice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import uuid_utils.compat as uuids

from session_service.domain import choice, ladder, plans
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.choice import CHOSEN, REMEMBERED
from session_service.domain.decision import Decision
from session_service.domain.ladder import on_changed_spec, restorable
from session_service.domain.policy import NOTHING, Persistence, Source
from session_service.domain.session import Mode
from session_service.domain.wish import mode_of
from session_service.storage.session.choices import Made

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.choice import Offered
    from session_service.domain.decision import Request
    from session_service.domain.evidence import Evidence
    from session_service.domain.policy import InForce, Policy, Setting
    from session_service.domain.session import Key, Record, Session
    from session_service.domain.spec import Change
    from session_service.domain.wish import Wish
    from session_service.policy.service import Rules
    from session_service.storage.session import change as changes

    Spec = Mapping[str, Any]  # Any: JSON, as the proto maps it


@dataclass(frozen=True, slots=True)
class Defaults:
    """The service's settings for every start: `app` is the app of new containers, and `freshness`
    is how long a session that was seen running is used without a provider read.
    """

    app: str
    freshness: timedelta


@dataclass(frozen=True, slots=True)
class Start:
    """The request of a start."""

    request: Request
    key: Key
    wish: Wish
    spec: Spec | None = None
    asked: Setting | None = None
    """The policy values that the request narrows."""
    token: str = field(default="", repr=False)
    """The user's answer to CHOICE_REQUIRED. A secret."""
    remember: bool = False
    """Whether to keep that answer as the user's preference."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that a start is decided by, from one reading of the rows."""

    start: Start
    record: Record | None
    """The live session at the key, or the session that the request names."""
    evidence: Evidence | None
    """The provider's evidence about its container; None before the provider was read."""
    rules: Rules
    made: Made | None = None
    """The choice that this start carries out: the user's answer, or the stored preference."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """The checkpoints that the session could be restored from."""
    given_back: tuple[changes.Change, ...] = ()
    """The session at the key may be a FRESH start in progress, whose predecessor is in the
    transition REPLACE. These changes return the predecessor to its former state; they are set if
    this start purges the session of that FRESH start."""

    @property
    def target(self) -> InForce:
        """The policy in force for the existing session, or for a new one if there is none."""
        if self.record is None:
            return self.rules.in_force(self.start.asked or NOTHING)
        row = policies.load_in_force(self.record.session.policy)
        return self.rules.for_session(row, self.start.asked)

    @property
    def policy(self) -> str | None:
        """The new value of the session's column `policy`; None if it does not change."""
        if self.record is None or policies.load_in_force(self.record.session.policy) == self.target:
            return None
        return policies.dump_in_force(self.target)

    @property
    def change(self) -> Change | None:
        """The difference between the wanted spec and the spec of the session's container."""
        if self.record is None:
            return None
        session = self.record.session
        wanted = self.wanted(session)
        if wanted is None:
            return None
        recreate = wishes.load(session.wish).recreate
        if recreate is not None:
            # The container is being recreated from that spec now.
            return specs.change(specs.load(recreate.spec), wanted)
        if specs.fingerprint(wanted) == session.fingerprint:
            return None
        return specs.change(specs.load(session.spec), wanted)

    @property
    def recreation(self) -> plans.TryRungs | None:
        """The plan with which CONTINUE would recreate the container, if the wanted spec requires
        that; else None.
        """
        if self.record is None or self.change is None:
            return None
        wish = replace(self.start.wish, mode=Mode.CONTINUE, min_continuity=None)
        saved = restorable(self.checkpoints)
        plan = on_changed_spec(wish, self.deciding, self.record, self.change, saved=saved)
        return plan if isinstance(plan, plans.TryRungs) else None

    def wanted(self, session: Session) -> Spec | None:
        """The spec that the session should have after the start: the spec of the request. If the
        request has none, and the session was created from the spec of the project or the operator,
        it is the present spec of that source. None means that the session keeps its spec.
        """
        spec = self.start.spec
        if spec is None:
            now, source = self.rules.spec
            of = policies.load_in_force(session.policy).sources.get("spec")
            spec = now if of in (Source.PROJECT, Source.DEFAULT) and of is source else None
        return None if spec is None else specs.as_restored(spec, session.spec)

    def opened(self, replaced: Record | None) -> tuple[Spec | None, InForce]:
        """The spec and the policy of a new session, which replaces `replaced` if given."""
        spec, source = self.start.spec, Source.REQUEST
        if spec is None:
            spec, source = self.rules.spec
        kept: Source | None = source
        if spec is None and replaced is not None:
            spec = specs.load(replaced.session.spec)
            kept = policies.load_in_force(replaced.session.policy).sources.get("spec")
        return spec, self.rules.in_force(self.start.asked or NOTHING, kept)

    @property
    def deciding(self) -> Policy:
        """The policy that the start is decided by, with the user's preference applied."""
        return policies.deciding(self.target.policy, self.rules.preference)

    @property
    def fresh(self) -> bool:
        """Whether the mode is FRESH, by the request or by the policy."""
        return mode_of(self.start.wish, self.deciding) is Mode.FRESH

    def decision(self, plan: plans.Plan) -> Decision:
        """The decision for this plan, with the facts as its inputs."""
        record = self.record
        return Decision(
            uuids.uuid7(),
            self.start.request,
            plan.rule,
            plan.because,
            session_id=None if record is None else record.session.session_id,
            mode=self.start.wish.mode,
            inputs=_inputs(record, self.evidence),
            project_id=self.start.key.project_id,
        )

    def decide(self, freshness: timedelta) -> plans.Decision:
        """The ladder's plan."""
        return ladder.decide(
            self.start.wish,
            self.deciding,
            self.record,
            self.evidence,
            freshness,
            self.change,
            self.checkpoints,
        )

    def with_preference(self) -> Facts:
        """The same facts; `made` is set if a stored preference decides this start."""
        unnamed = self.start.wish.mode is Mode.UNSPECIFIED
        asks = self.target.policy.persistence is Persistence.ASK
        chosen = CHOSEN.get(self.rules.preference)
        if self.record is None or not (unnamed and asks) or chosen is None:
            return self
        made = Made(self.start.key, chosen, self.record.session.session_id)
        return replace(self, made=made)

    def with_answer(self, offered: Offered, token_hash: bytes) -> Facts:
        """The same facts, with the wish and the `made` of the user's answer."""
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
            None if offered.choice is plans.Choice.CONTINUE else offered.start_count,
        )
        return replace(self, start=replace(start, wish=wish), made=made)


def differing(start: Start, session: Session, facts: Facts | None) -> tuple[str, ...]:
    """The parts in which the wanted spec differs from the spec of the session's container. `facts`
    is None if only the session was read.
    """
    wanted = start.spec if facts is None else facts.wanted(session)
    if wanted is None or specs.fingerprint(wanted) == session.fingerprint:
        return ()
    return specs.differing(specs.load(session.spec), wanted)


def _inputs(record: Record | None, evidence: Evidence | None) -> str:
    """The facts of the decision, as JSON: ListDecisions shows it."""
    facts: dict[str, object] = {}
    if record is not None:
        session = record.session
        seen = session.verified_at
        facts |= {
            "state": session.state,
            "transition": session.transition,
            "generation": session.generation,
            "pause_depth": session.pause_depth,
            "loss_untold": session.loss_untold,
            "verified_seconds_ago": None if seen is None else (record.now - seen).total_seconds(),
        }
    if evidence is not None:
        facts["evidence"] = {
            "presence": evidence.presence,
            "state": evidence.state,
            "memory_intact": evidence.memory_intact,
            "preview_answered": evidence.preview_answered,
        }
    return json.dumps(facts)


@dataclass(frozen=True, slots=True)
class Restore:
    """RestoreCheckpoint: the session, and a checkpoint of its key, by id or else by number."""

    request: Request
    session_id: UUID
    checkpoint_id: UUID | None
    number: int
