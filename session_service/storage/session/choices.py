"""Queries on choices: the candidates offered to users, the choices made, and recent start times.

An offer is one row for each candidate. A row is found by the hash of its token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.choice import Offered
from session_service.domain.plans import Choice
from session_service.domain.session import Continuity, Key, Outcome
from session_service.storage import policy
from session_service.storage.database import (
    BATCH_TIMEOUT,
    Connection,
    Database,
    compiled,
    one,
    trimming,
)
from session_service.storage.session import decisions as decision_rows
from session_service.storage.session.reads import key_parameters
from session_service.storage.session.retained import is_counted
from session_service.storage.tables import choice_tokens, choices, decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.decision import Decision
    from session_service.domain.policy import Preference


#: An expired token is kept for this long. Until then its use fails with CHOICE_TOKEN_EXPIRED, and
#: not with CHOICE_TOKEN_INVALID.
EXPIRED_KEPT = sa.text("interval '1 day'")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A candidate to offer, and the SHA-256 of its token."""

    token_hash: bytes
    choice: Choice
    session_id: UUID
    start_count: int
    expected: Continuity
    checkpoint_id: UUID | None = None


_OFFER = compiled(
    lambda: (
        sa.insert(choice_tokens)
        .values(
            **{
                name: sa.bindparam(name, type_=choice_tokens.c[name].type)
                for name in (
                    *("token_hash", "tenant", "project_id", "user_id", "slot", "choice"),
                    *(
                        "session_id",
                        "start_count",
                        "expected_continuity",
                        "checkpoint_id",
                        "offered",
                    ),
                )
            },
            expire_time=sa.func.now() + sa.bindparam("valid", type_=sa.Interval),
        )
        .returning(choice_tokens.c.expire_time)
    ),
    lambda row: row[0],
)


async def offer(
    database: Database,
    key: Key,
    tokens: Sequence[NewToken],
    offered: str,
    valid: timedelta,
    decision: Decision,
) -> datetime | None:
    """Insert the offered candidates together with the decision that asks the user. Returns the
    time at which the tokens expire; None without tokens.
    """
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


# The token's decision failed with an error that can be retried: its token can be used again, as can
# its request id.
_FAILED = sa.exists().where(
    decisions.c.decision_id == choice_tokens.c.decision_id,
    decisions.c.finish_time.is_not(None),
    decisions.c.error["retry_after"].astext.is_not(None),
)
#: The token whose hash is bound to `token_hash`.
HASH = choice_tokens.c.token_hash == sa.bindparam("token_hash", type_=sa.LargeBinary)
_FIND = compiled(
    lambda: sa.select(
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
    lambda: (
        sa.update(choice_tokens)
        .where(
            HASH,
            choice_tokens.c.expire_time > sa.func.now(),
            choice_tokens.c.decision_id.is_(None) | _FAILED,
        )
        .values(decision_id=sa.bindparam("decision_id", type_=choice_tokens.c.decision_id.type))
        .returning(choice_tokens.c.token_hash)
    ),
    lambda row: True,
)


async def find_offer(database: Database, token_hash: bytes) -> Offered | None:
    """The offer of the token with this hash; None if there is no such token."""
    return await database.fetch_one(_FIND, {"token_hash": token_hash})


async def use_offer(connection: Connection, token_hash: bytes, decision_id: UUID) -> bool:
    """Use up the token, within the transaction that commits the decision; False if it has been used
    up or has expired.
    """
    params = {"token_hash": token_hash, "decision_id": decision_id}
    return await one(connection, _USE, params) is not None


_TRIM_OFFERS = trimming(
    choice_tokens.c.token_hash,
    lambda: choice_tokens.c.expire_time < sa.func.now() - EXPIRED_KEPT,
)


async def trim_offers(database: Database, most: int) -> int:
    """Delete up to `most` tokens that expired more than a day ago; return how many."""
    return await database.fetch_one(_TRIM_OFFERS, {"most": most}, BATCH_TIMEOUT) or 0


_UUID = choices.c.decision_id.type

# Runs in the transaction that has already changed this row and holds its lock: a start that was
# committed before that change is counted in `start_count`, and none can be committed after it.
_NOT_STARTED_SINCE = compiled(
    lambda: sa.select(sessions.c.session_id).where(
        sessions.c.session_id == sa.bindparam("session_id", type_=_UUID),
        sessions.c.start_count == sa.bindparam("start_count", type_=sa.BigInteger),
    ),
    lambda row: True,
)
_DELETE_EARLIER_CHOICE = compiled(
    lambda: (
        sa.delete(choices)
        .where(
            choices.c.decision_id
            == sa.select(choice_tokens.c.decision_id).where(HASH).scalar_subquery()
        )
        .returning(choices.c.decision_id)
    ),
    lambda row: True,
)


@dataclass(frozen=True, slots=True)
class Made:
    """A choice that a decision carries out."""

    key: Key
    choice: Choice
    session_id: UUID
    """The session that existed at the key when the choice was made."""
    offered: str = "[]"
    checkpoint_id: UUID | None = None
    token_hash: bytes | None = None
    """None if the user was not asked, because a stored preference decided."""
    remember: Preference | None = None
    """The preference to store for the user; None if the choice is not to be remembered."""
    start_count: int | None = None
    """The session's `start_count` when the user was asked, if a later start makes the answer stale.
    None if it does not: a choice to continue with the session replaces nothing."""


_CHOSE = compiled(
    lambda: (
        sa.insert(choices)
        .values(
            **{
                name: sa.bindparam(name, type_=choices.c[name].type)
                for name in (
                    *("decision_id", "tenant", "project_id", "user_id", "slot", "session_id"),
                    *("choice", "checkpoint_id", "offered", "asked", "remember"),
                )
            }
        )
        .returning(choices.c.decision_id)
    ),
    lambda row: True,
)


async def make(connection: Connection, made: Made, decision_id: UUID) -> bool:
    """Within the transaction that commits the decision: use up the token, insert the choice, store
    the preference. False if the token has been used up or has expired, or if the session that the
    choice replaces was started again since the user was asked. After False the caller must roll the
    transaction back.
    """
    if made.token_hash is not None:
        # The choice of an earlier try that failed: a choice is counted once.
        await one(connection, _DELETE_EARLIER_CHOICE, {"token_hash": made.token_hash})
        if not await use_offer(connection, made.token_hash, decision_id):
            return False
    if made.start_count is not None:
        # A start that reuses a running session advances `start_count` but not the epoch, and so the
        # compare-and-set on the epoch does not notice it.
        seen = {"session_id": made.session_id, "start_count": made.start_count}
        if await one(connection, _NOT_STARTED_SINCE, seen) is None:
            return False
    row = {
        **key_parameters(made.key),
        "decision_id": decision_id,
        "session_id": made.session_id,
        "choice": made.choice,
        "checkpoint_id": made.checkpoint_id,
        "offered": made.offered,
        "asked": made.token_hash is not None,
        "remember": made.remember is not None,
    }
    await one(connection, _CHOSE, row)
    if made.remember is not None:
        key = made.key
        await policy.prefer(connection, key.tenant, key.project_id, key.user_id, made.remember)
    return True


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest choice at a key."""

    choice: Choice
    decision_id: UUID
    create_time: datetime


_LATEST = compiled(lambda: sa.select(choices.c.choice, choices.c.decision_id, choices.c.create_time)
    .where(*(choices.c[name] == sa.bindparam(name, type_=sa.Text) for name in (
        "tenant", "project_id", "user_id", "slot",
    )))
    .order_by(choices.c.decision_id.desc())
    .limit(1),
    lambda row: Latest(Choice(row[0]), row[1], row[2]),
)  # fmt: skip


async def latest(database: Database, key: Key) -> Latest | None:
    """The latest choice at the key; None if there is none."""
    return await database.fetch_one(_LATEST, key_parameters(key))


_TRIM = trimming(
    choices.c.decision_id,
    lambda: is_counted(choices.c.create_time),
)


async def trim(database: Database, before: datetime, most: int) -> int:
    """Delete up to `most` choices from before this time; return how many."""
    return await database.fetch_one(_TRIM, {"older_than": before, "most": most}, BATCH_TIMEOUT) or 0


#: The duration of an outcome is the median of this many of its newest decisions.
SAMPLE = 50
#: Reuses are searched for among this many of the newest decisions.
NEWEST = 2000
_REUSED: sa.ColumnElement[str] = sa.literal_column("'REUSED'")
_STARTS = ("StartSession", "ResumeSession")


def _sample(outcome: Outcome) -> sa.Select[Any]:
    """The median duration of the newest starts with this outcome, in ms."""
    if outcome is Outcome.REUSED:
        # The index on outcomes leaves reuses out, because most decisions are reuses. The newest
        # decisions are read instead. If none of them is a reuse, there is no duration.
        ids = decisions.c.decision_id.desc()
        rows: sa.FromClause = (
            sa.select(decisions).order_by(ids).limit(NEWEST).subquery("newest_decisions")
        )
    else:
        rows = decisions
    took = sa.func.extract("epoch", rows.c.finish_time - rows.c.create_time) * 1000
    sample = (
        sa.select(took.label("took"))
        .where(
            rows.c.outcome == sa.literal_column(f"'{outcome}'"),
            # The predicate as it is written in the index, so that the index is used.
            *([] if outcome is Outcome.REUSED else [rows.c.outcome != _REUSED]),
            sa.not_(rows.c.joined),
            rows.c.method.in_([sa.literal_column(f"'{method}'") for method in _STARTS]),
        )
        .order_by(rows.c.decision_id.desc())
        .limit(SAMPLE)
        .subquery(f"sample_{outcome.lower()}")
    )
    median: sa.ColumnElement[Any] = sa.func.percentile_disc(0.5).within_group(sample.c.took)
    word: sa.ColumnElement[Any] = sa.literal_column(f"'{outcome}'")
    return sa.select(word, sa.cast(median, sa.BigInteger))


_WAITS = compiled(
    lambda: sa.union_all(*(_sample(outcome) for outcome in Outcome)),
    lambda row: (Outcome(row[0]), row[1]),
)


async def waits_by_outcome(database: Database) -> Mapping[Outcome, int]:
    """The median duration of the newest starts, in ms, by outcome. An outcome without any start is
    left out.
    """
    rows = await database.fetch_all(_WAITS, {})
    return {outcome: took for outcome, took in rows if took is not None}
