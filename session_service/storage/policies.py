"""Queries on what projects, tenants and users have set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.domain.choice import Preference
from session_service.domain.effective import Setting
from session_service.storage import decisions as decision_rows
from session_service.storage.database import Connection, Database, compiled, one
from session_service.storage.rows import scalar
from session_service.storage.tables import policies, sessions, tiers, user_preferences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.storage.decisions import NewDecision


@dataclass(frozen=True, slots=True)
class Stored:
    """What is set for a user of a project. Any: the spec is JSON, as the proto maps it."""

    tier: str | None
    """None: the operator's default."""
    version: int
    """Counts the project's updates; 0 where there was none."""
    setting: Setting
    spec: Mapping[str, Any] | None
    update_time: datetime | None
    preference: Preference | None
    preference_time: datetime | None


def _make(row: Sequence[Any]) -> Stored:
    tier, version, setting, spec, updated, preference, preferred = row
    return Stored(
        tier,
        version or 0,
        Setting.from_json(json.loads(setting or "{}")),
        None if spec is None else json.loads(spec),
        updated,
        None if preference is None else Preference(preference),
        preferred,
    )


_TENANT = sa.bindparam("tenant", type_=sa.Text)
_PROJECT = sa.bindparam("project_id", type_=sa.Text)
_USER = sa.bindparam("user_id", type_=sa.Text)
_ONE = sa.select(sa.literal_column("1").label("one")).subquery("one")
_STORED = compiled(
    sa.select(
        tiers.c.tier,
        policies.c.version,
        policies.c.setting,
        policies.c.spec,
        policies.c.update_time,
        user_preferences.c.preference,
        user_preferences.c.update_time,
    ).select_from(
        _ONE.outerjoin(tiers, tiers.c.tenant == _TENANT)
        .outerjoin(policies, (policies.c.tenant == _TENANT) & (policies.c.project_id == _PROJECT))
        .outerjoin(
            user_preferences,
            (user_preferences.c.tenant == _TENANT)
            & (user_preferences.c.project_id == _PROJECT)
            & (user_preferences.c.user_id == _USER),
        )
    ),
    _make,
)


async def read(database: Database, tenant: str, project_id: str, user_id: str = "") -> Stored:
    """What is set; one round trip."""
    params = {"tenant": tenant, "project_id": project_id, "user_id": user_id}
    found = await database.fetch_one(_STORED, params)
    assert found is not None, "outer joins to one row have a row"
    return found


_SPREAD_UNTIL = sa.func.now() + sa.bindparam("spread", type_=sa.Interval)
_SETTING = sa.bindparam("setting", type_=policies.c.setting.type)
_SPEC = sa.bindparam("spec", type_=policies.c.spec.type)
_INSERT = compiled(
    postgresql.insert(policies)
    .values(
        tenant=_TENANT,
        project_id=_PROJECT,
        setting=_SETTING,
        spec=_SPEC,
        spread_until=_SPREAD_UNTIL,
    )
    .on_conflict_do_nothing()
    .returning(policies.c.version),
    scalar(int),
)
_UPDATE = compiled(
    sa.update(policies)
    .where(
        policies.c.tenant == _TENANT,
        policies.c.project_id == _PROJECT,
        policies.c.version == sa.bindparam("version", type_=sa.BigInteger),
    )
    .values(
        setting=_SETTING,
        spec=_SPEC,
        version=policies.c.version + 1,
        update_time=sa.func.now(),
        spread_until=_SPREAD_UNTIL,
    )
    .returning(policies.c.version),
    scalar(int),
)


async def update(
    database: Database,
    project: tuple[str, str],
    version: int,
    setting: Setting,
    spec: Mapping[str, Any] | None,
    spread: timedelta,
    decision: NewDecision,
) -> int | None:
    """Write (tenant, project)'s policy, with its decision, if its version is still this (0: none is
    there); its new version. For `spread` live sessions are told of it.

    None where it is another by now, or where the decision's request id is taken. Any: JSON.
    """
    params = {
        "tenant": project[0],
        "project_id": project[1],
        "setting": json.dumps(setting.as_json()),
        "spec": None if spec is None else json.dumps(spec),
        "spread": spread,
    }
    written: int | None = None
    try:
        async with database.transaction() as connection:
            if version:
                written = await one(connection, _UPDATE, {**params, "version": version})
            else:
                written = await one(connection, _INSERT, params)
            if written is None:
                raise psycopg.Rollback
            await decision_rows.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return None
    return written


_PREFERENCE = sa.bindparam("preference", type_=sa.Text)
_PREFER = compiled(
    postgresql.insert(user_preferences)
    .values(tenant=_TENANT, project_id=_PROJECT, user_id=_USER, preference=_PREFERENCE)
    .on_conflict_do_update(
        index_elements=["tenant", "project_id", "user_id"],
        set_={"preference": _PREFERENCE, "update_time": sa.func.now()},
    )
    .returning(user_preferences.c.preference),
    scalar(str),
)


async def prefer(
    connection: Connection, tenant: str, project_id: str, user_id: str, preference: Preference
) -> None:
    """Keep what a user prefers."""
    params = {
        "tenant": tenant,
        "project_id": project_id,
        "user_id": user_id,
        "preference": preference,
    }
    await one(connection, _PREFER, params)


async def prefer_once(
    database: Database, user: tuple[str, str, str], preference: Preference, decision: NewDecision
) -> bool:
    """Keep what (tenant, project, user) prefers, with its decision; False where its request id is
    taken, and nothing was written.
    """
    try:
        async with database.transaction() as connection:
            await prefer(connection, *user, preference)
            await decision_rows.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return False
    return True


_TIER = sa.bindparam("tier", type_=sa.Text)
_SET_TIER = compiled(
    postgresql.insert(tiers)
    .values(tenant=_TENANT, tier=_TIER, spread_until=_SPREAD_UNTIL)
    .on_conflict_do_update(
        index_elements=["tenant"],
        set_={"tier": _TIER, "update_time": sa.func.now(), "spread_until": _SPREAD_UNTIL},
    )
    .returning(tiers.c.tier),
    scalar(str),
)


async def set_tier(database: Database, tenant: str, tier: str, spread: timedelta) -> None:
    """Give a tenant a tier; for `spread` its live sessions are told of it."""
    await database.fetch_one(_SET_TIER, {"tenant": tenant, "tier": tier, "spread": spread})


# --- telling live sessions ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Behind:
    """A settled live session whose row knows another version of its policy."""

    session_id: UUID
    policy: str
    fingerprint: str


#: Settled: what is in flight is told once it has settled.
_SETTLED = sa.text("sessions.state IN ('ACTIVE', 'PAUSED') AND sessions.transition IS NULL")
# Tenants' changes reach all their projects that have live sessions.
_TO_TELL = compiled(
    sa.union(
        sa.select(policies.c.tenant, policies.c.project_id).where(
            policies.c.spread_until.is_not(None)
        ),
        sa.select(sessions.c.tenant, sessions.c.project_id)
        .join(tiers, tiers.c.tenant == sessions.c.tenant)
        .where(tiers.c.spread_until.is_not(None), _SETTLED),
    ),
    lambda row: (str(row[0]), str(row[1])),
)
_BEHIND = compiled(
    sa.select(sessions.c.session_id, sessions.c.policy, sessions.c.fingerprint)
    .where(
        sessions.c.tenant == _TENANT,
        sessions.c.project_id == _PROJECT,
        _SETTLED,
        # In the words of the live key's index, so that it is used.
        sa.text("sessions.state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
        sessions.c.policy["version"].astext.is_distinct_from(
            sa.bindparam("version", type_=sa.Text)
        ),
    )
    .limit(sa.bindparam("most", type_=sa.BigInteger)),
    lambda row: Behind(row[0], row[1], row[2]),
)
_IDS = postgresql.ARRAY(postgresql.UUID(as_uuid=True))
# A change like any other: the epoch moves, so that whoever just decided by the old policy decides
# again.
_TELL = compiled(
    sa.update(sessions)
    .where(
        sessions.c.session_id == sa.any_(sa.bindparam("ids", type_=_IDS)),
        sessions.c.policy == sa.bindparam("old", type_=sessions.c.policy.type),
        _SETTLED,
    )
    .values(
        policy=sa.bindparam("new", type_=sessions.c.policy.type),
        due_at=sa.func.now(),
        epoch=sessions.c.epoch + 1,
        change_time=sa.func.now(),
    )
    .returning(sessions.c.session_id),
    lambda row: row[0],
)
_TOLD = [
    compiled(
        sa.update(table)
        .where(table.c.spread_until <= sa.func.now())
        .values(spread_until=sa.null())
        .returning(table.c.tenant),
        scalar(str),
    )
    for table in (policies, tiers)
]


async def to_tell(database: Database) -> list[tuple[str, str]]:
    """(Tenant, project) of whose policies live sessions are still to be told."""
    return await database.fetch_all(_TO_TELL, {})


async def behind(
    database: Database, project: tuple[str, str], version: str, most: int
) -> list[Behind]:
    """Up to `most` live sessions of the project that know another version than this."""
    params = {"tenant": project[0], "project_id": project[1], "version": version, "most": most}
    return await database.fetch_all(_BEHIND, params)


async def tell(database: Database, session_ids: Sequence[UUID], old: str, new: str) -> int:
    """Give these sessions the policy `new`, where theirs is still `old`; how many have it now."""
    params = {"ids": list(session_ids), "old": old, "new": new}
    return len(await database.fetch_all(_TELL, params))


async def told(database: Database) -> None:
    """Stop telling where the time for it is over."""
    for statement in _TOLD:
        await database.fetch_all(statement, {})
