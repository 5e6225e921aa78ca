"""Queries on project policies, tenants' tiers and users' preferences.

A change of a policy or tier is copied to the rows of the live sessions that it affects. `spread` is
the time during which sessions with an outdated policy are searched for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.domain.policy import Preference, Setting
from session_service.storage.database import Connection, Database, compiled, one, scalar
from session_service.storage.session import decisions
from session_service.storage.tables import LIVE_STATES, policies, sessions, tiers, user_preferences

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.decision import Decision


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored settings for a user of a project. Any: the spec is JSON, as the proto maps it."""

    tier: str | None
    """None for the operator's default."""
    version: int
    """The number of updates of the project's policy; 0 if there was none."""
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
    lambda: sa.select(
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
    """The stored settings, in one round trip. Without a user there is no preference."""
    params = {"tenant": tenant, "project_id": project_id, "user_id": user_id}
    found = await database.fetch_one(_STORED, params)
    assert found is not None, "outer joins to one row have a row"
    return found


_SPREAD_UNTIL = sa.func.now() + sa.bindparam("spread", type_=sa.Interval)
_SETTING = sa.bindparam("setting", type_=policies.c.setting.type)
_SPEC = sa.bindparam("spec", type_=policies.c.spec.type)
_INSERT = compiled(
    lambda: (
        postgresql.insert(policies)
        .values(
            tenant=_TENANT,
            project_id=_PROJECT,
            setting=_SETTING,
            spec=_SPEC,
            spread_until=_SPREAD_UNTIL,
        )
        .on_conflict_do_nothing()
        .returning(policies.c.version)
    ),
    scalar(int),
)
_UPDATE = compiled(
    lambda: (
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
        .returning(policies.c.version)
    ),
    scalar(int),
)


async def update(
    database: Database,
    project: tuple[str, str],
    version: int,
    setting: Setting,
    spec: Mapping[str, Any] | None,
    spread: timedelta,
    decision: Decision,
) -> int | None:
    """Write the policy of (tenant, project), with the decision, if its version is still `version`
    (0 if it has no policy yet). Returns the new version. The change is spread to live sessions
    during `spread`.

    None if the policy has another version by now, or if the decision's request id is taken. Any:
    JSON.
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
            await decisions.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return None
    return written


_PREFERENCE = sa.bindparam("preference", type_=sa.Text)
_PREFER = compiled(
    lambda: (
        postgresql.insert(user_preferences)
        .values(tenant=_TENANT, project_id=_PROJECT, user_id=_USER, preference=_PREFERENCE)
        .on_conflict_do_update(
            index_elements=["tenant", "project_id", "user_id"],
            set_={"preference": _PREFERENCE, "update_time": sa.func.now()},
        )
        .returning(user_preferences.c.preference)
    ),
    scalar(str),
)


async def prefer(
    connection: Connection, tenant: str, project_id: str, user_id: str, preference: Preference
) -> None:
    """Store the preference of a user."""
    params = {
        "tenant": tenant,
        "project_id": project_id,
        "user_id": user_id,
        "preference": preference,
    }
    await one(connection, _PREFER, params)


async def prefer_once(
    database: Database, user: tuple[str, str, str], preference: Preference, decision: Decision
) -> bool:
    """Store the preference of (tenant, project, user), with the decision; False if the decision's
    request id is taken, in which case nothing was written.
    """
    try:
        async with database.transaction() as connection:
            await prefer(connection, *user, preference)
            await decisions.insert(connection, decision)
    except psycopg.errors.UniqueViolation:
        return False
    return True


_TIER = sa.bindparam("tier", type_=sa.Text)
_SET_TIER = compiled(
    lambda: (
        postgresql.insert(tiers)
        .values(tenant=_TENANT, tier=_TIER, spread_until=_SPREAD_UNTIL)
        .on_conflict_do_update(
            index_elements=["tenant"],
            set_={"tier": _TIER, "update_time": sa.func.now(), "spread_until": _SPREAD_UNTIL},
        )
        .returning(tiers.c.tier)
    ),
    scalar(str),
)


async def set_tier(database: Database, tenant: str, tier: str, spread: timedelta) -> None:
    """Set the tier of a tenant. The change is spread to its live sessions during `spread`."""
    await database.fetch_one(_SET_TIER, {"tenant": tenant, "tier": tier, "spread": spread})


# --- spreading a change to live sessions -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutdatedSession:
    """A settled live session whose row has a policy of another version."""

    session_id: UUID
    policy: str
    fingerprint: str


#: ACTIVE or PAUSED, and not in transition. A session in transition gets the policy afterwards.
_SETTLED = sa.text("sessions.state IN ('ACTIVE', 'PAUSED') AND sessions.transition IS NULL")
# A changed tier affects all projects of the tenant that have live sessions.
_CHANGED = compiled(
    lambda: sa.union(
        sa.select(policies.c.tenant, policies.c.project_id).where(
            policies.c.spread_until.is_not(None)
        ),
        sa.select(sessions.c.tenant, sessions.c.project_id)
        .join(tiers, tiers.c.tenant == sessions.c.tenant)
        .where(tiers.c.spread_until.is_not(None), _SETTLED),
    ),
    lambda row: (str(row[0]), str(row[1])),
)
_IS_OUTDATED = sa.and_(
    _SETTLED,
    sessions.c.policy["version"].astext.is_distinct_from(sa.bindparam("version", type_=sa.Text)),
)
# In the order of the index on live keys, from where the batch before ended: each row is read once,
# however many there are and whatever their policies.
_WALK = compiled(
    lambda: (
        sa.select(
            sessions.c.user_id,
            sessions.c.slot,
            sessions.c.session_id,
            sa.case((_IS_OUTDATED, sessions.c.policy)),
            sessions.c.fingerprint,
        )
        .where(
            sessions.c.tenant == _TENANT,
            sessions.c.project_id == _PROJECT,
            # The predicate of the index on live keys, as it is written there, so that it is used.
            sa.text(f"sessions.state IN ({LIVE_STATES})"),
            sa.tuple_(sessions.c.user_id, sessions.c.slot)
            > sa.tuple_(_USER, sa.bindparam("slot", type_=sa.Text)),
        )
        .order_by(sessions.c.user_id, sessions.c.slot)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    ),
    tuple,
)
_IDS = postgresql.ARRAY(postgresql.UUID(as_uuid=True))
# The epoch advances: a decision that was made under the old policy and is not committed yet fails
# its compare-and-set, and is made again.
_REPLACE = compiled(
    lambda: (
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
        .returning(sessions.c.session_id)
    ),
    lambda row: row[0],
)


def _finish_spreads(table: sa.Table) -> sa.ClauseElement:
    return (
        sa.update(table)
        .where(table.c.spread_until <= sa.func.now())
        .values(spread_until=sa.null())
        .returning(table.c.tenant)
    )


_FINISH_SPREADS = [
    compiled(partial(_finish_spreads, table), scalar(str)) for table in (policies, tiers)
]


async def changed_projects(database: Database) -> list[tuple[str, str]]:
    """(Tenant, project) for each project with a change of policy or tier that is being spread."""
    return await database.fetch_all(_CHANGED, {})


async def outdated_sessions(
    database: Database, project: tuple[str, str], version: str, most: int
) -> AsyncGenerator[list[OutdatedSession], None]:
    """The settled live sessions of (tenant, project) whose policy has another version, in batches:
    those among the next `most` live sessions by key. A batch may be empty.
    """
    params = {"tenant": project[0], "project_id": project[1], "version": version, "most": most}
    user_id = slot = ""
    while True:
        rows = await database.fetch_all(_WALK, {**params, "user_id": user_id, "slot": slot})
        yield [OutdatedSession(row[2], row[3], row[4]) for row in rows if row[3] is not None]
        if len(rows) < most:
            return
        user_id, slot = rows[-1][:2]


async def replace_policy(
    database: Database, session_ids: Sequence[UUID], old: str, new: str
) -> int:
    """Set the policy of these sessions to `new`, if it is still `old` and they are settled; return
    how many were changed.
    """
    params = {"ids": list(session_ids), "old": old, "new": new}
    return len(await database.fetch_all(_REPLACE, params))


async def finish_spreads(database: Database) -> None:
    """End the spreading of the changes whose `spread_until` has passed."""
    for statement in _FINISH_SPREADS:
        await database.fetch_all(statement, {})
