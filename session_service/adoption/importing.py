"""One import, from the older rows to sessions: stage, judge, look, adopt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service.adoption import columns, rows
from session_service.adoption.words import Meaning
from session_service.domain import conditions
from session_service.domain import policy as policies
from session_service.domain.session import DEFAULT_SLOT, DEFAULT_TENANT, ConditionType
from session_service.storage import adoption, adoption_staging
from session_service.storage.adoption import Values

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from session_service.adoption.columns import Field
    from session_service.adoption.rows import Candidate, Raw, Terms
    from session_service.adoption.sighting import Sighting
    from session_service.adoption.sources import Source
    from session_service.domain.policy import Policy
    from session_service.storage.database import Connection


class ImportRunning(Exception):
    """Another import writes to this database."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How to import."""

    terms: Terms
    policy: Policy
    columns: Mapping[Field, str]
    """Columns that were told; the others go by their usual names."""
    keep_machines: bool = False
    """Whether superseded rows come in without their machines, which are then left alone."""
    writes: bool = True
    """Whether anything is written, rather than only said."""


async def run(
    connection: Connection, source: Source, sighting: Sighting | None, wish: Wish
) -> None:
    """Import. What became of each row is then in the connection's staging table.

    Without a `sighting` nobody asks the provider. Raises columns.BadColumns, sources.BadSource,
    ImportRunning: nothing was written.
    """
    known = columns.find(source.columns, wish.columns)
    if not await adoption_staging.begin(connection, lock=wish.writes):
        raise ImportRunning
    await _stage(connection, source.pieces(known), wish.terms)
    await adoption_staging.judge(
        connection,
        tenant=DEFAULT_TENANT,
        slot=DEFAULT_SLOT,
        keep_machines=wish.keep_machines,
        writes=wish.writes,
    )
    values = _values(wish, await _now(connection))
    await _adopt(connection, ("LIVE",), sighting, values, writes=wish.writes)
    await adoption.hold_back(connection)
    await _adopt(connection, ("SUPERSEDED", "ENDED"), None, values, writes=wish.writes)
    await adoption.explain(connection)
    if wish.writes:
        await adoption.finish(connection)


async def _now(connection: Connection) -> datetime:
    cursor = await connection.execute("SELECT now()")
    row = await cursor.fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


def _values(wish: Wish, now: datetime) -> Values:
    policy = wish.policy
    return Values(
        tenant=DEFAULT_TENANT,
        slot=DEFAULT_SLOT,
        policy=policies.dump(policy),
        lost=conditions.dump([conditions.condition(ConditionType.CONTAINER_LOST, now)]),
        source=wish.terms.source,
        idle_timeout=policy.idle_timeout,
        deepen_after=min(policy.deepen_after, policy.checkpoint_after or policy.deepen_after),
        grace_period=policy.grace_period,
    )


async def _stage(connection: Connection, pieces: AsyncIterator[list[Raw]], terms: Terms) -> None:
    place = 0
    async for piece in pieces:
        await adoption_staging.stage(connection, _staged(piece, place, terms))
        place += len(piece)


def _staged(piece: Sequence[Raw], place: int, terms: Terms) -> Iterator[Sequence[Any]]:
    """The rows as they are copied. Any: values of every column's type."""
    for offset, raw in enumerate(piece):
        candidate = rows.read(raw, terms)
        yield (
            place + offset,
            candidate.old_id,
            candidate.session_id,
            uuids.uuid7(),
            candidate.project_id,
            candidate.user_id,
            candidate.word,
            candidate.meaning,
            candidate.machine,
            candidate.app,
            candidate.region,
            candidate.spec,
            candidate.fingerprint,
            candidate.created,
            candidate.updated,
            candidate.active,
            _result(candidate),
            candidate.reason,
            candidate.detail,
        )


def _result(candidate: Candidate) -> str | None:
    """What is decided of a row by itself: nothing, where it can be taken."""
    if candidate.meaning is Meaning.LEFT_OUT:
        return "LEFT_OUT"
    return None if candidate.reason is None else "SKIPPED"


async def _adopt(
    connection: Connection,
    parts: Sequence[str],
    sighting: Sighting | None,
    values: Values,
    *,
    writes: bool,
) -> None:
    """Batch by batch: look at its machines, with no transaction open, then adopt it."""
    after = -1
    while True:
        batch = await adoption.next_batch(connection, parts, after)
        if not batch.places:
            return
        if sighting is not None and batch.machines:
            await adoption.saw(connection, await sighting.look(batch.machines))
        await adoption.adopt(connection, batch.places, values, writes=writes)
        after = batch.places[-1]
