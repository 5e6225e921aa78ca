"""Queries on what users were offered: one row a candidate, by the hash of its token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.choice import Choice, Offered
from session_service.domain.session import Continuity, Key
from session_service.storage import decisions as decision_rows
from session_service.storage.connections import PATIENT
from session_service.storage.database import Connection, Database, compiled, one
from session_service.storage.sessions import key_parameters
from session_service.storage.tables import choice_tokens, decisions
from session_service.storage.trimming import trimming

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.storage.decisions import NewDecision

#: An expired token is still told apart from one that never was for this long.
EXPIRED_KEPT = sa.text("interval '1 day'")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A candidate that is offered, by the SHA-256 of its token."""

    token_hash: bytes
    choice: Choice
    session_id: UUID
    start_count: int
    expected: Continuity
    checkpoint_id: UUID | None = None


_OFFER = compiled(
    sa.insert(choice_tokens)
    .values(
        **{
            name: sa.bindparam(name, type_=choice_tokens.c[name].type)
            for name in (
                *("token_hash", "tenant", "project_id", "user_id", "slot", "choice"),
                *("session_id", "start_count", "expected_continuity", "checkpoint_id", "offered"),
            )
        },
        expire_time=sa.func.now() + sa.bindparam("valid", type_=sa.Interval),
    )
    .returning(choice_tokens.c.expire_time),
    lambda row: row[0],
)


async def offer(
    database: Database,
    key: Key,
    tokens: Sequence[NewToken],
    offered: str,
    valid: timedelta,
    decision: NewDecision,
) -> datetime | None:
    """Write down what is offered, with the decision that asks; until when its tokens count."""
    expire_time = None
    async with database.transaction() as connection:
        await decision_rows.insert(connection, decision)
        for token in tokens:
            params = {
                **key_parameters(key),
                "token_hash": token.token_hash,
                "choice": token.choice,
                "session_id": token.session_id,
                "start_count": token.start_count,
                "expected_continuity": int(token.expected),
                "checkpoint_id": token.checkpoint_id,
                "offered": offered,
                "valid": valid,
            }
            expire_time = await one(connection, _OFFER, params)
    return expire_time


def _make_offered(row: Sequence[Any]) -> Offered:
    key = Key(*row[:4])
    return Offered(key, Choice(row[4]), row[5], row[6], Continuity(row[7]), *row[8:])


# Who used a token and failed in a way that can be retried gives it back, as it does its request id.
_FAILED = sa.exists().where(
    decisions.c.decision_id == choice_tokens.c.decision_id,
    decisions.c.finish_time.is_not(None),
    decisions.c.error["retry_after"].astext.is_not(None),
)
#: The token whose hash is bound to `token_hash`.
HASH = choice_tokens.c.token_hash == sa.bindparam("token_hash", type_=sa.LargeBinary)
_FIND = compiled(
    sa.select(
        choice_tokens.c.tenant,
        choice_tokens.c.project_id,
        choice_tokens.c.user_id,
        choice_tokens.c.slot,
        choice_tokens.c.choice,
        choice_tokens.c.session_id,
        choice_tokens.c.start_count,
        choice_tokens.c.expected_continuity,
        choice_tokens.c.checkpoint_id,
        choice_tokens.c.offered,
        sa.case((_FAILED, None), else_=choice_tokens.c.decision_id),
        choice_tokens.c.expire_time <= sa.func.now(),
        choice_tokens.c.create_time,
    ).where(HASH),
    _make_offered,
)
_USE = compiled(
    sa.update(choice_tokens)
    .where(
        HASH,
        choice_tokens.c.expire_time > sa.func.now(),
        choice_tokens.c.decision_id.is_(None) | _FAILED,
    )
    .values(decision_id=sa.bindparam("decision_id", type_=choice_tokens.c.decision_id.type))
    .returning(choice_tokens.c.token_hash),
    lambda row: True,
)


async def find(database: Database, token_hash: bytes) -> Offered | None:
    """What the token of this hash was offered for; None where there is none."""
    return await database.fetch_one(_FIND, {"token_hash": token_hash})


async def use(connection: Connection, token_hash: bytes, decision_id: UUID) -> bool:
    """Use the token up, within the transaction that commits the decision; False where it was used
    up or expired meanwhile.
    """
    params = {"token_hash": token_hash, "decision_id": decision_id}
    return await one(connection, _USE, params) is not None


_TRIM = trimming(
    choice_tokens.c.token_hash, choice_tokens.c.expire_time < sa.func.now() - EXPIRED_KEPT
)


async def trim(database: Database, most: int) -> int:
    """Delete up to `most` tokens that expired more than a day ago; how many."""
    return await database.fetch_one(_TRIM, {"most": most}, PATIENT) or 0
