"""Requests with a request id: executed once, and answered alike each time (AIP-155).

A change and the record of its request are in one transaction. A repeat that arrives meanwhile
waits for the session's row, which every change locks first; then its own insert of the record
fails, its transaction is rolled back, and it is answered from the record. A final refusal is
recorded after the transaction was rolled back, by a statement that returns the existing record if
another attempt of the same request was first. A failure that can be retried is not recorded, and
leaves the id free.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from session_service import errors
from session_service.domain.decision import dump_error
from session_service.storage.agent import requests as records

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.domain.agent import AgentSession
    from session_service.domain.decision import Request
    from session_service.storage.agent.requests import RequestRecord
    from session_service.storage.database import Connection, Database


@dataclass(frozen=True, slots=True)
class Changed:
    """The result of a change: the session now, and the branch that was set aside, if any."""

    session: AgentSession
    branch_id: int | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """The recorded result of a request that was executed before."""

    session_id: str
    branch_id: int | None


class SessionIdTaken(Exception):
    """The change would create a session under an id that the tenant has already."""


async def run_once(
    database: Database,
    request: Request,
    session_id: str,
    change: Callable[[Connection], Awaitable[Changed]],
) -> Changed | Replayed:
    """Run `change` and record its request, in one transaction; or return the recorded result.

    `change` locks the session's row first (see above). Raises the refusal that `change` raises, or
    the recorded one; RequestIdReused; SessionIdTaken.
    """
    try:
        async with database.transaction() as connection:
            changed = await change(connection)
            if request.request_id is not None:
                await records.record_success(
                    connection, request, changed.session.session_id, changed.branch_id
                )
        return changed
    except psycopg.errors.UniqueViolation as violation:
        earlier = await replay(database, request)
        if earlier is None:
            raise SessionIdTaken from violation
        return earlier
    except errors.RoostError as refusal:
        return await record_and_raise(database, request, session_id, refusal)


async def replay(database: Database, request: Request) -> Replayed | None:
    """The request's recorded result; None if there is none.

    Raises the recorded refusal, or RequestIdReused.
    """
    record = await records.find(database, request)
    return None if record is None else _result(record, request)


async def record_and_raise(
    database: Database, request: Request, session_id: str, refusal: errors.RoostError
) -> Replayed:
    """Record the refusal, if it is final, and raise it.

    Returns only if another attempt of the same request succeeded first: its result.
    """
    final = refusal.reason in errors.RECORDED and not isinstance(refusal, errors.Retryable)
    if request.request_id is None or not final:
        raise refusal
    error = dump_error(refusal.reason, refusal.message, refusal.metadata)
    return _result(await records.record_refusal(database, request, session_id, error), request)


def check_same_body(request: Request, recorded_hash: bytes) -> None:
    """Raise RequestIdReused if the request id was used with another body."""
    if request.request_hash != bytes(recorded_hash):
        raise errors.RequestIdReused(
            f"request_id {request.request_id} was used with another body; use a new one"
        )


def _result(record: RequestRecord, request: Request) -> Replayed:
    check_same_body(request, record.request_hash)
    if record.error is not None:
        error = json.loads(record.error)
        raise errors.RECORDED[error["reason"]](error["message"], error["metadata"])
    return Replayed(record.session_id, record.branch_id)
