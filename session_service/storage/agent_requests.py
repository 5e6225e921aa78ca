"""What came of agent requests that carried an id: each id counts once, per tenant and method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert

from session_service.storage.agent_tables import llm_branches, llm_requests, llm_turns
from session_service.storage.database import Connection, Database, compiled, one

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from session_service.domain.decision import Request


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was written down of a request: the session that it made or changed, or its refusal."""

    request_hash: bytes
    session_id: str
    branch_id: int | None
    error: str | None
    """A JSON object {reason, message, metadata}; None on success."""


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """The turn that an append's request made. `session_id` None: its session was purged."""

    request_hash: bytes
    session_id: str | None
    branch_id: int
    turn_number: int
    tokens: int
    estimated_tokens: int
    total_tokens: int
    create_time: datetime


_RECORDED = (
    llm_requests.c.request_hash,
    llm_requests.c.session_id,
    llm_requests.c.branch_id,
    llm_requests.c.error,
)
_VALUES = ("tenant", "method", "request_id", "request_hash", "session_id", "branch_id", "error")


def binds() -> dict[str, sa.BindParameter[Any]]:
    """A record's columns as binds, named `r_` + column. Any: every type."""
    return {name: sa.bindparam(f"r_{name}", type_=llm_requests.c[name].type) for name in _VALUES}


def parameters(
    request: Request, session_id: str, branch_id: int | None = None, error: str | None = None
) -> dict[str, object]:
    """The values of `binds`."""
    return {
        "r_tenant": request.tenant,
        "r_method": request.method,
        "r_request_id": request.request_id,
        "r_request_hash": request.request_hash,
        "r_session_id": session_id,
        "r_branch_id": branch_id,
        "r_error": error,
    }


def refused_append() -> sa.ColumnElement[bool]:
    """Whether the append of binds `tenant` and `t_request_id` is recorded as refused."""
    request_id = sa.bindparam("t_request_id", type_=llm_requests.c.request_id.type)
    return sa.exists().where(
        llm_requests.c.tenant == sa.bindparam("tenant"),
        llm_requests.c.method == sa.literal_column("'AppendTurn'"),
        llm_requests.c.request_id == request_id,
    )


_INSERT = compiled(
    sa.insert(llm_requests).values(**binds()).returning(*_RECORDED), lambda row: Recorded(*row)
)
#: Gives the row that is there where there is one: an update that changes nothing returns it.
_INSERT_ONCE = compiled(
    upsert(llm_requests)
    .values(**binds())
    .on_conflict_do_update(
        index_elements=["tenant", "method", "request_id"],
        set_={"request_hash": llm_requests.c.request_hash},
    )
    .returning(*_RECORDED),
    lambda row: Recorded(*row),
)
_FIND = compiled(
    sa.select(*_RECORDED).where(
        llm_requests.c.tenant == sa.bindparam("r_tenant"),
        llm_requests.c.method == sa.bindparam("r_method"),
        llm_requests.c.request_id
        == sa.bindparam("r_request_id", type_=llm_requests.c.request_id.type),
    ),
    lambda row: Recorded(*row),
)


def _recorded_turn(row: Sequence[Any]) -> RecordedTurn:
    return RecordedTurn(*row)


_FIND_TURN = compiled(
    sa.select(
        llm_turns.c.request_hash,
        llm_branches.c.session_id,
        llm_turns.c.branch_id,
        llm_turns.c.turn_number,
        llm_turns.c.tokens,
        llm_turns.c.estimated_tokens,
        llm_turns.c.tokens_after,
        llm_turns.c.create_time,
    )
    .join(llm_branches, llm_branches.c.branch_id == llm_turns.c.branch_id)
    .where(
        llm_turns.c.tenant == sa.bindparam("r_tenant"),
        llm_turns.c.request_id == sa.bindparam("r_request_id", type_=llm_turns.c.request_id.type),
    ),
    _recorded_turn,
)


async def insert(
    connection: Connection, request: Request, session_id: str, branch_id: int | None
) -> None:
    """Record a success, in the transaction that makes it.

    Raises psycopg.errors.UniqueViolation (constraint `llm_requests_pkey`).
    """
    await one(connection, _INSERT, parameters(request, session_id, branch_id))


async def refuse(database: Database, request: Request, session_id: str, error: str) -> Recorded:
    """Record a final refusal; give what is recorded, which is another's if it was first."""
    row = await database.fetch_one(_INSERT_ONCE, parameters(request, session_id, None, error))
    if row is None:
        raise AssertionError("an INSERT … RETURNING gives a row")
    return row


async def find(database: Database, request: Request) -> Recorded | None:
    """What is recorded of the request's id; None for nothing, or without one."""
    if request.request_id is None:
        return None
    return await database.fetch_one(_FIND, parameters(request, ""))


async def find_turn(database: Database, request: Request) -> RecordedTurn | None:
    """The turn that the request's id made; None for none, or without one."""
    if request.request_id is None:
        return None
    return await database.fetch_one(_FIND_TURN, parameters(request, ""))
