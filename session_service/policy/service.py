"""Reads and sets projects' policies, tenants' tiers and users' preferences.

`Rules` holds the settings for a user of a project, and computes the policy in force for a session
from them. A session's row has a copy of its policy in force, and the version of the settings that
the copy was computed from. A change of a policy or a tier therefore has to update the copies of
live sessions (`PolicyService.propagate`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import policy as policies
from session_service.domain.decision import Decision
from session_service.domain.policy import (
    NOTHING,
    TIERS,
    LiveQuota,
    OnFingerprintChange,
    Preference,
    Setting,
    Source,
    live_quota,
    tier_of,
)
from session_service.domain.spec import fingerprint
from session_service.storage import policy as storage_policy
from session_service.transition.decision_record import earlier

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.policy import InForce, Policy
    from session_service.domain.session import Key
    from session_service.storage.database import Database
    from session_service.storage.policy import OutdatedSession, Stored

_log = logging.getLogger(__name__)

#: The most live sessions whose policy one pass of the loop in `_apply` updates.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator's configuration for all tenants. Any: the spec is JSON, as the proto maps it."""

    policy: Policy
    tier: str
    spec: Mapping[str, Any] | None
    live_sessions: int = 0
    """The most live sessions that a tenant may have; 0: as many as its tier allows."""

    @property
    def base(self) -> str:
        """A hash of the parts of a policy in force that do not come from the database: the
        operator's defaults and the caps of the tiers.
        """
        caps = {name: tier.caps.as_json() for name, tier in TIERS.items()}
        text = f"{policies.dump(self.policy)}{self.tier}{caps}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings for a user of a project: of the operator, the tenant's tier, the project and
    the user. The settings that a request asks for are not among them.
    """

    operator: Operator
    base: str
    stored: Stored

    @property
    def tier(self) -> str:
        """The name of the tenant's tier."""
        return self.stored.tier or self.operator.tier

    @property
    def live_quota(self) -> LiveQuota | None:
        """The most live sessions that the tenant may have; None: no limit."""
        return live_quota(self.operator.live_sessions, tier_of(self.tier))

    @property
    def version(self) -> str:
        """The version of a policy in force. It changes with the tenant's tier and with each update
        of the project's policy.
        """
        return f"{self.tier}.{self.stored.version}"

    @property
    def preference(self) -> Preference:
        """The user's preference under a policy that asks the user; ASK if none is set."""
        return self.stored.preference or Preference.ASK

    @property
    def spec(self) -> tuple[Mapping[str, Any] | None, Source]:
        """The container spec for a start that gives none, and its source: the project or the
        operator. Any: JSON.
        """
        if self.stored.spec is not None:
            return self.stored.spec, Source.PROJECT
        return self.operator.spec, Source.DEFAULT

    def in_force(self, asked: Setting = NOTHING, spec: Source | None = None) -> InForce:
        """The policy in force for a session whose start asked for `asked`. `spec` is the source of
        the session's spec.
        """
        effective = policies.effective(
            self.operator.policy, tier_of(self.tier), self.stored.setting, asked
        )
        sources = dict(effective.sources)
        if spec is not None:
            sources["spec"] = spec
        return replace(effective, sources=sources, base=self.base, version=self.version)

    def for_session(self, row: InForce, asked: Setting | None) -> InForce:
        """The policy in force for an existing session. `row` is the policy in its row.

        If `asked` is None, the settings that an earlier request asked for stay in force.
        """
        return self.in_force(row.asked if asked is None else asked, row.sources.get("spec"))


@dataclass(frozen=True, slots=True)
class Update:
    """An update of a project's policy. Any: the spec is JSON, as the proto maps it."""

    setting: Setting
    spec: Mapping[str, Any] | None
    fields: frozenset[str] | None
    """The values to replace; one that is None in `setting` or `spec` is cleared. None: replace all.
    """

    def apply_to(self, before: Stored) -> tuple[Setting, Mapping[str, Any] | None]:
        """The setting and the spec after the update."""
        if self.fields is None:
            return self.setting, self.spec
        replaced = {name: getattr(self.setting, name) for name in self.fields - {"spec"}}
        spec = self.spec if "spec" in self.fields else before.spec
        return replace(before.setting, **replaced), spec


@dataclass(frozen=True, slots=True)
class Preferred:
    """A user's preference; None if the user never set one."""

    preference: Preference | None
    update_time: datetime | None


class PolicyService:
    """Reads and sets policies, tiers and preferences, and applies changes to live sessions."""

    def __init__(self, database: Database, operator: Operator, propagate_for: timedelta) -> None:
        """`propagate_for` is a time after each change. Until it is over, every pass of `propagate`
        looks for live sessions that have the old policy.

        It must be at least as long as a start can take: a start that read the old policy before
        the change can commit its session after the change. A shorter time would leave the old
        policy in that session's row.
        """
        self._database = database
        self._operator = operator
        self._propagate_for = propagate_for
        #: Changes with the operator's configuration. A start that finds another value in a
        #: session's row computes the policy again.
        self.base = operator.base

    async def of(self, key: Key) -> Rules:
        """Read the rules for a key, in one round trip."""
        return await self._rules(key.tenant, key.project_id, key.user_id)

    async def project(self, tenant: str, project_id: str) -> Rules:
        """Read the rules for a project, without a user's preference."""
        return await self._rules(tenant, project_id)

    async def _rules(self, tenant: str, project_id: str, user_id: str = "") -> Rules:
        found = await storage_policy.read(self._database, tenant, project_id, user_id)
        return Rules(self._operator, self.base, found)

    # --- setting -------------------------------------------------------------------------------

    async def update(
        self, request: Request, project_id: str, wanted: Update, etag: str | None
    ) -> Rules:
        """Set a project's policy, and apply it to its live sessions.

        Raises EtagMismatch if the policy has changed since the caller read it; RequestIdReused.
        """
        # `storage_policy.update` writes only if the version is still the one read here. It returns
        # None if another update committed first, or if a call with the same request id did: the
        # next round tells the two apart.
        while not await self._is_repeated(request):
            before = await self.project(request.tenant, project_id)
            if etag and etag != etag_of(before):
                raise errors.EtagMismatch(
                    "the policy changed since it was read; read it again before a new attempt",
                    {"etag": etag_of(before)},
                )
            setting, spec = wanted.apply_to(before.stored)
            decision = _decision(request, "POLICY_SET", f"the policy of project {project_id!r}")
            version = await storage_policy.update(
                self._database,
                (request.tenant, project_id),
                before.stored.version,
                setting,
                spec,
                self._propagate_for,
                decision,
            )
            if version is not None:
                _log.info(
                    "a project's policy was set",
                    extra={"action": "policy", "project_id": project_id, "version": version},
                )
                await self._apply((request.tenant, project_id))
                break
        return await self.project(request.tenant, project_id)

    async def preference(self, tenant: str, project_id: str, user_id: str) -> Preferred:
        """Read a user's preference."""
        found = await storage_policy.read(self._database, tenant, project_id, user_id)
        return Preferred(found.preference, found.preference_time)

    async def set_preference(
        self, request: Request, project_id: str, user_id: str, preference: Preference
    ) -> Preferred:
        """Set a user's preference. Raises RequestIdReused."""
        because = f"the preference of user {user_id!r} in project {project_id!r}"
        user = (request.tenant, project_id, user_id)
        while not await self._is_repeated(request):
            decision = _decision(request, "PREFERENCE_SET", because)
            if await storage_policy.prefer_once(self._database, user, preference, decision):
                break
        return await self.preference(*user)

    async def set_tier(self, tenant: str, tier: str) -> int:
        """Set a tenant's tier, one of `TIERS`; return how many live sessions were updated."""
        await storage_policy.set_tier(self._database, tenant, tier, self._propagate_for)
        return await self.propagate()

    async def _is_repeated(self, request: Request) -> bool:
        """Whether a call with this request id has been committed. Raises RequestIdReused."""
        return await earlier(self._database, request) is not None

    # --- applying changes to live sessions -----------------------------------------------------

    async def propagate(self) -> int:
        """One pass: apply recent changes to live sessions; return how many sessions were updated.

        The call that makes a change applies it already. The pass updates the sessions that this
        call could not update: those that had a transition in flight at that time, and those that
        were left when the replica died during the call.
        """
        updated = 0
        for project in await storage_policy.changed_projects(self._database):
            updated += await self._apply(project)
        await storage_policy.finish_spreads(self._database)
        return updated

    async def _apply(self, project: tuple[str, str]) -> int:
        """Update the policy in the rows of the project's live sessions; return how many."""
        rules = await self.project(*project)
        updated = 0
        # A session that begins a transition after it was read is not updated: the next pass does.
        async for rows in storage_policy.outdated_sessions(
            self._database, project, rules.version, BATCH
        ):
            for (old, new), session_ids in _grouped(rules, rows).items():
                updated += await storage_policy.replace_policy(
                    self._database, session_ids, old, new
                )
        return updated


def _grouped(rules: Rules, rows: list[OutdatedSession]) -> Mapping[tuple[str, str], list[UUID]]:
    """The sessions' ids by (policy in the row, policy to write), both as JSON text."""
    groups: dict[tuple[str, str], list[UUID]] = defaultdict(list)
    # Most sessions of a project have the same policy: each is parsed once.
    targets: dict[tuple[str, str], str] = {}
    for behind in rows:
        kind = behind.policy, behind.fingerprint
        if kind not in targets:
            targets[kind] = _target(rules, behind)
        groups[behind.policy, targets[kind]].append(behind.session_id)
    return groups


def _target(rules: Rules, behind: OutdatedSession) -> str:
    """The policy to write, as JSON text."""
    row = policies.load_in_force(behind.policy)
    target = rules.for_session(row, None)
    updated = policies.follow(row, target)
    if _other_spec(rules, behind, target):
        updated = replace(updated, stale=True)
    return policies.dump_in_force(updated)


def _other_spec(rules: Rules, behind: OutdatedSession, target: InForce) -> bool:
    """Whether the session was created from a spec of the project or the operator, that spec has
    changed since, and the session's policy is not ALLOW. The next start then recreates the
    container or fails.
    """
    if target.policy.on_fingerprint_change is OnFingerprintChange.ALLOW:
        return False
    spec, source = rules.spec
    if spec is None or target.sources.get("spec") is not source:
        return False
    return fingerprint(spec) != behind.fingerprint


def etag_of(rules: Rules) -> str:
    """The etag of a project's policy (AIP-154)."""
    return f"{rules.stored.version:x}"


def _decision(request: Request, rule: str, because: str) -> Decision:
    return Decision(uuids.uuid7(), request, rule, because, finished=True)
