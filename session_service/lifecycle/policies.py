"""What is in force for a key, and setting it: projects' policies, tenants' tiers, preferences."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import effective
from session_service.domain import policy as policies
from session_service.domain.choice import Preference
from session_service.domain.effective import NOTHING, Setting, Source
from session_service.domain.fingerprint import fingerprint
from session_service.domain.policy import OnFingerprintChange
from session_service.domain.tiers import TIERS, LiveQuota, live_quota, tier_of
from session_service.storage import decisions
from session_service.storage import policies as stored
from session_service.storage.decisions import NewDecision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.effective import InForce
    from session_service.domain.policy import Policy
    from session_service.domain.session import Key
    from session_service.storage.database import Database
    from session_service.storage.policies import Behind, Stored

_log = logging.getLogger(__name__)

#: Live sessions that one statement tells of a new policy.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Operator:
    """What the operator has set for all tenants. Any: the spec is JSON, as the proto maps it."""

    policy: Policy
    tier: str
    spec: Mapping[str, Any] | None
    live_sessions: int = 0
    """The most live sessions of any tenant; 0 is as many as its tier allows."""

    @property
    def base(self) -> str:
        """A word that changes with what a policy in force is made of here."""
        caps = {name: tier.caps.as_json() for name, tier in TIERS.items()}
        made = f"{policies.dump(self.policy)}{self.tier}{caps}"
        return hashlib.sha256(made.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a user of a project, before what a start asks for."""

    operator: Operator
    base: str
    stored: Stored

    @property
    def tier(self) -> str:
        """The name of the tenant's tier."""
        return self.stored.tier or self.operator.tier

    @property
    def live_quota(self) -> LiveQuota | None:
        """The most live sessions that the tenant may have; None is as many as are asked for."""
        return live_quota(self.operator.live_sessions, tier_of(self.tier))

    @property
    def version(self) -> str:
        """A word that changes with the tenant's tier and the project's policy."""
        return f"{self.tier}.{self.stored.version}"

    @property
    def preference(self) -> Preference:
        """What decides where the user would be asked."""
        return self.stored.preference or Preference.ASK

    @property
    def spec(self) -> tuple[Mapping[str, Any] | None, Source]:
        """What containers are made of where a start does not say, and who says so. Any: JSON."""
        if self.stored.spec is not None:
            return self.stored.spec, Source.PROJECT
        return self.operator.spec, Source.DEFAULT

    def in_force(self, asked: Setting = NOTHING, spec: Source | None = None) -> InForce:
        """The policy for a session whose start asked for this; `spec`: where its spec is from."""
        made = effective.effective(
            self.operator.policy, tier_of(self.tier), self.stored.setting, asked
        )
        sources = dict(made.sources)
        if spec is not None:
            sources["spec"] = spec
        return replace(made, sources=sources, base=self.base, version=self.version)

    def for_session(self, row: InForce, asked: Setting | None) -> InForce:
        """The policy for a session that is there, its row's policy being `row`: what was asked for
        once is kept to where nothing else is asked for.
        """
        return self.in_force(row.asked if asked is None else asked, row.sources.get("spec"))


@dataclass(frozen=True, slots=True)
class Update:
    """What to make of a project's policy. Any: the spec is JSON, as the proto maps it."""

    setting: Setting
    spec: Mapping[str, Any] | None
    fields: frozenset[str] | None
    """Which values to take, and set anew where they are None; None: exactly these, all of them."""

    def of(self, before: Stored) -> tuple[Setting, Mapping[str, Any] | None]:
        """The setting and the spec that come of it."""
        if self.fields is None:
            return self.setting, self.spec
        taken = {name: getattr(self.setting, name) for name in self.fields - {"spec"}}
        spec = self.spec if "spec" in self.fields else before.spec
        return replace(before.setting, **taken), spec


@dataclass(frozen=True, slots=True)
class Preferred:
    """What a user prefers; None where that was never set."""

    preference: Preference | None
    update_time: datetime | None


class Policies:
    """Reads and sets what is in force."""

    def __init__(self, database: Database, operator: Operator, spread: timedelta) -> None:
        """For `spread` after a change live sessions are told of it: at least as long as a start may
        take that read what was before.
        """
        self._database = database
        self._operator = operator
        self._spread = spread
        #: Changes with the operator's configuration: rows made of another are made anew.
        self.base = operator.base

    async def of(self, key: Key) -> Rules:
        """What holds at a key; one round trip."""
        return await self._rules(key.tenant, key.project_id, key.user_id)

    async def project(self, tenant: str, project_id: str) -> Rules:
        """What holds in a project."""
        return await self._rules(tenant, project_id)

    async def _rules(self, tenant: str, project_id: str, user_id: str = "") -> Rules:
        found = await stored.read(self._database, tenant, project_id, user_id)
        return Rules(self._operator, self.base, found)

    # --- setting -------------------------------------------------------------------------------

    async def update(
        self, request: Request, project_id: str, wanted: Update, etag: str | None
    ) -> Rules:
        """Set a project's policy, and tell its live sessions. Raises EtagMismatch where it has
        changed since it was read, RequestIdReused.
        """
        while not await self._done_before(request):
            before = await self.project(request.tenant, project_id)
            if etag and etag != etag_of(before):
                raise errors.EtagMismatch(
                    "the policy changed since it was read; read it again and decide anew",
                    {"etag": etag_of(before)},
                )
            setting, spec = wanted.of(before.stored)
            decision = _decision(request, "POLICY_SET", f"the policy of project {project_id!r}")
            version = await stored.update(
                self._database,
                (request.tenant, project_id),
                before.stored.version,
                setting,
                spec,
                self._spread,
                decision,
            )
            if version is not None:
                _log.info(
                    "a project's policy was set",
                    extra={"action": "policy", "project_id": project_id, "version": version},
                )
                await self._tell((request.tenant, project_id))
                break
        return await self.project(request.tenant, project_id)

    async def preferred(self, tenant: str, project_id: str, user_id: str) -> Preferred:
        """What a user prefers."""
        found = await stored.read(self._database, tenant, project_id, user_id)
        return Preferred(found.preference, found.preference_time)

    async def prefer(
        self, request: Request, project_id: str, user_id: str, preference: Preference
    ) -> Preferred:
        """Keep what a user prefers. Raises RequestIdReused."""
        because = f"what user {user_id!r} prefers in project {project_id!r}"
        user = (request.tenant, project_id, user_id)
        while not await self._done_before(request):
            decision = _decision(request, "PREFERENCE_SET", because)
            if await stored.prefer_once(self._database, user, preference, decision):
                break
        return await self.preferred(*user)

    async def set_tier(self, tenant: str, tier: str) -> int:
        """Give a tenant a tier of `TIERS`; how many live sessions were told at once."""
        await stored.set_tier(self._database, tenant, tier, self._spread)
        return await self.spread()

    async def _done_before(self, request: Request) -> bool:
        """Whether this request id has done it already. Raises RequestIdReused."""
        found = await decisions.of_request(self._database, request)
        if found is not None and found.request_hash != request.request_hash:
            raise errors.RequestIdReused(
                "this request_id came before with another body; use a new one for a new request"
            )
        return found is not None

    # --- telling live sessions -----------------------------------------------------------------

    async def spread(self) -> int:
        """The single shot: tell live sessions of what has changed lately; how many were told.

        A change tells them itself. This is for what it left, dying, and for those that were in
        flight then.
        """
        told = 0
        for project in await stored.to_tell(self._database):
            told += await self._tell(project)
        await stored.told(self._database)
        return told

    async def _tell(self, project: tuple[str, str]) -> int:
        rules = await self.project(*project)
        told = 0
        while rows := await stored.behind(self._database, project, rules.version, BATCH):
            moved = 0
            for (old, new), session_ids in _grouped(rules, rows).items():
                moved += await stored.tell(self._database, session_ids, old, new)
            told += moved
            if not moved:
                # All of them are on their way somewhere by now: the next pass has them.
                break
        return told


def _grouped(rules: Rules, rows: list[Behind]) -> Mapping[tuple[str, str], list[UUID]]:
    """The sessions by what their policies say now and are to say."""
    groups: dict[tuple[str, str], list[UUID]] = defaultdict(list)
    for behind in rows:
        row = effective.load(behind.policy)
        target = rules.for_session(row, None)
        followed = effective.follow(row, target)
        if _other_spec(rules, behind, target):
            followed = replace(followed, stale=True)
        groups[behind.policy, effective.dump(followed)].append(behind.session_id)
    return groups


def _other_spec(rules: Rules, behind: Behind, target: InForce) -> bool:
    """Whether the next start has to say something about the project's spec, which it was made of
    and which is another now.
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


def _decision(request: Request, rule: str, because: str) -> NewDecision:
    return NewDecision(uuids.uuid7(), request, rule, because, finished=True)
