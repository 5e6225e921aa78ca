"""Requests that carry an id: done once, and answered alike each time (AIP-155)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from session_service import errors
from session_service.domain.decision import dump_error
from session_service.storage import agent_requests

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.domain.agent import AgentSession
    from session_service.domain.decision import Request
    from session_service.storage.agent_requests import Recorded
    from session_service.storage.database import Connection, Database


@dataclass(frozen=True, slots=True)
class Done:
    """What a request did: the session, and the branch that it set aside, if any."""

    session: AgentSession
    branch_id: int | None = None


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the same request did before."""

    session_id: str
    branch_id: int | None


class IdTaken(Exception):
    """The work would have made a session under an id that is taken."""


async def once(
    database: Database,
    request: Request,
    session_id: str,
    work: Callable[[Connection], Awaitable[Done]],
) -> Done | Earlier:
    """Do the work in one transaction with the record of its request, or tell what it did before.

    The work locks what it changes first, so that a repeat that comes meanwhile waits. Raises
    whatever refusal the work raises, or the one that is recorded; IdTaken.
    """
    try:
        async with database.transaction() as connection:
            done = await work(connection)
            if request.request_id is not None:
                await agent_requests.insert(
                    connection, request, done.session.session_id, done.branch_id
                )
        return done
    except psycopg.errors.UniqueViolation as violation:
        earlier = await replay(database, request)
        if earlier is None:
            raise IdTaken from violation
        return earlier
    except errors.RoostError as refusal:
        return await refuse(database, request, session_id, refusal)


async def replay(database: Database, request: Request) -> Earlier | None:
    """What the request did before, None where nothing is recorded. Raises its recorded refusal,
    or RequestIdReused.
    """
    recorded = await agent_requests.find(database, request)
    return None if recorded is None else _told(recorded, request)


async def refuse(
    database: Database, request: Request, session_id: str, refusal: errors.RoostError
) -> Earlier:
    """Record the refusal, if it is final, and raise it; tell what the request did before, where
    the same request was first.
    """
    final = refusal.reason in errors.RECORDED and not isinstance(refusal, errors.Retryable)
    if request.request_id is None or not final:
        raise refusal
    error = dump_error(refusal.reason, refusal.message, refusal.metadata)
    return _told(await agent_requests.refuse(database, request, session_id, error), request)


def check_body(request: Request, recorded_hash: bytes) -> None:
    """Raise RequestIdReused where the id was used with another body."""
    if request.request_hash != bytes(recorded_hash):
        raise errors.RequestIdReused(
            f"request_id {request.request_id} was used with another body; use a new one"
        )


def _told(recorded: Recorded, request: Request) -> Earlier:
    check_body(request, recorded.request_hash)
    if recorded.error is not None:
        told = json.loads(recorded.error)
        raise errors.RECORDED[told["reason"]](told["message"], told["metadata"])
    return Earlier(recorded.session_id, recorded.branch_id)
