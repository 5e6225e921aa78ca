"""The records of requests with a request id: each id counts once, per tenant and method (AIP-155).

A success is recorded in the transaction that makes the change; a final refusal in a statement of
its own. A successful append needs no record: the turn's row carries the request id and hash, under
a unique index. So an append stays one statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert

from session_service.storage.agent.tables import llm_branches, llm_requests, llm_turns
from session_service.storage.database import Connection, Database, compiled, one

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.decision import Request


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The recorded result of a request.

    On success: the session that it created or changed, and the branch that it set aside, if any.
    """

    request_hash: bytes
    session_id: str
    branch_id: int | None
    error: str | None
    """The final refusal: a JSON object {reason, message, metadata}. None on success."""


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


_RECORD = (
    llm_requests.c.request_hash,
    llm_requests.c.session_id,
    llm_requests.c.branch_id,
    llm_requests.c.error,
)
_VALUES = ("tenant", "method", "request_id", "request_hash", "session_id", "branch_id", "error")


def binds() -> dict[str, sa.BindParameter[Any]]:
    """The columns of a record as binds, each named `r_` + column. Any: every type."""
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


def append_was_refused() -> sa.ColumnElement[bool]:
    """Whether a refusal is recorded for the append of binds `tenant` and `t_request_id`."""
    request_id = sa.bindparam("t_request_id", type_=llm_requests.c.request_id.type)
    return sa.exists().where(
        llm_requests.c.tenant == sa.bindparam("tenant"),
        llm_requests.c.method == sa.literal_column("'AppendTurn'"),
        llm_requests.c.request_id == request_id,
    )


_INSERT = compiled(
    lambda: sa.insert(llm_requests).values(**binds()).returning(*_RECORD),
    lambda row: RequestRecord(*row),
)
#: Returns the existing record if there is one: DO NOTHING would return no row, and an update to the
#: value that is there already does.
_INSERT_OR_GET = compiled(
    lambda: (
        upsert(llm_requests)
        .values(**binds())
        .on_conflict_do_update(
            index_elements=["tenant", "method", "request_id"],
            set_={"request_hash": llm_requests.c.request_hash},
        )
        .returning(*_RECORD)
    ),
    lambda row: RequestRecord(*row),
)
_FIND = compiled(
    lambda: sa.select(*_RECORD).where(
        llm_requests.c.tenant == sa.bindparam("r_tenant"),
        llm_requests.c.method == sa.bindparam("r_method"),
        llm_requests.c.request_id
        == sa.bindparam("r_request_id", type_=llm_requests.c.request_id.type),
    ),
    lambda row: RequestRecord(*row),
)
_FIND_TURN = compiled(
    lambda: (
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
            llm_turns.c.request_id
            == sa.bindparam("r_request_id", type_=llm_turns.c.request_id.type),
        )
    ),
    lambda row: RecordedTurn(*row),
)


async def record_success(
    connection: Connection, request: Request, session_id: str, branch_id: int | None
) -> None:
    """Record a success, in the transaction that makes the change.

    Raises psycopg.errors.UniqueViolation (constraint `llm_requests_pkey`).
    """
    await one(connection, _INSERT, parameters(request, session_id, branch_id))


async def record_refusal(
    database: Database, request: Request, session_id: str, error: str
) -> RequestRecord:
    """Record a final refusal, unless the request has a record; return the one that now counts."""
    row = await database.fetch_one(_INSERT_OR_GET, parameters(request, session_id, None, error))
    if row is None:
        raise AssertionError("INSERT … RETURNING returns a row")
    return row


async def find(database: Database, request: Request) -> RequestRecord | None:
    """The request's record; None if there is none, or if the request has no id."""
    if request.request_id is None:
        return None
    return await database.fetch_one(_FIND, parameters(request, ""))


async def find_turn(database: Database, request: Request) -> RecordedTurn | None:
    """The turn that the request appended; None if there is none, or if the request has no id."""
    if request.request_id is None:
        return None
    return await database.fetch_one(_FIND_TURN, parameters(request, ""))
