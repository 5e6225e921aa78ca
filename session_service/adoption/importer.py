"""The order of an import: stage the rows, decide, probe the machines, insert the sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service.adoption import mapping, rows, staging, storage
from session_service.adoption.mapping import Meaning
from session_service.adoption.storage import Values
from session_service.domain import policy as policies
from session_service.domain.session import (
    DEFAULT_SLOT,
    DEFAULT_TENANT,
    ConditionType,
    condition,
    dump_conditions,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from session_service.adoption.mapping import Field
    from session_service.adoption.probe import MachineProbe
    from session_service.adoption.rows import Candidate, Raw, RowOptions
    from session_service.adoption.sources import Source
    from session_service.domain.policy import Policy
    from session_service.storage.database import Connection


class ImportRunning(Exception):
    """Another import is writing to this database."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an import is done."""

    rows: RowOptions
    policy: Policy
    columns: Mapping[Field, str]
    """Columns that the operator named; other fields are found by usual names."""
    keep_machines: bool = False
    """Whether superseded rows are imported without their machines. Roost then never destroys those
    machines."""
    writes: bool = True
    """False for a dry run."""


async def run(
    connection: Connection, source: Source, probe: MachineProbe | None, options: Options
) -> None:
    """Import all rows of the source. Afterwards the connection's staging table has the result of
    each row.

    Without a `probe` the provider is not asked. Raises mapping.BadColumns, sources.BadSource and
    ImportRunning before anything is written.
    """
    known = mapping.find_columns(source.columns, options.columns)
    if not await staging.begin(connection, lock=options.writes):
        raise ImportRunning
    await _stage(connection, source.pieces(known), options.rows)
    await staging.judge(
        connection,
        tenant=DEFAULT_TENANT,
        slot=DEFAULT_SLOT,
        keep_machines=options.keep_machines,
        writes=options.writes,
    )
    values = _values(options, await _now(connection))
    await _adopt(connection, ("LIVE",), probe, values, writes=options.writes)
    await storage.skip_superseded(connection)
    await _adopt(connection, ("SUPERSEDED", "ENDED"), None, values, writes=options.writes)
    await storage.explain(connection)
    if options.writes:
        await storage.finish(connection)


async def _now(connection: Connection) -> datetime:
    cursor = await connection.execute("SELECT now()")
    row = await cursor.fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


def _values(options: Options, now: datetime) -> Values:
    policy = options.policy
    return Values(
        tenant=DEFAULT_TENANT,
        slot=DEFAULT_SLOT,
        policy=policies.dump(policy),
        lost=dump_conditions([condition(ConditionType.CONTAINER_LOST, now)]),
        source=options.rows.source,
        idle_timeout=policy.idle_timeout,
        deepen_after=min(policy.deepen_after, policy.checkpoint_after or policy.deepen_after),
        grace_period=policy.grace_period,
    )


async def _stage(
    connection: Connection, pieces: AsyncIterator[list[Raw]], options: RowOptions
) -> None:
    place = 0
    async for piece in pieces:
        await staging.stage(connection, _staged(piece, place, options))
        place += len(piece)


def _staged(piece: Sequence[Raw], place: int, options: RowOptions) -> Iterator[Sequence[Any]]:
    """The rows as they are copied. Any: values of every column's type."""
    for offset, raw in enumerate(piece):
        candidate = rows.read(raw, options)
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
    """LEFT_OUT or SKIPPED, if the row alone shows that it is not imported; else None."""
    if candidate.meaning is Meaning.LEFT_OUT:
        return "LEFT_OUT"
    return None if candidate.reason is None else "SKIPPED"


async def _adopt(
    connection: Connection,
    parts: Sequence[str],
    probe: MachineProbe | None,
    values: Values,
    *,
    writes: bool,
) -> None:
    """Batch by batch: probe the machines, with no transaction open, then insert the sessions."""
    after = -1
    while True:
        batch = await storage.next_batch(connection, parts, after)
        if not batch.places:
            return
        if probe is not None and batch.machines:
            await storage.record(connection, await probe.observe(batch.machines))
        await storage.adopt(connection, batch.places, values, writes=writes)
        after = batch.places[-1]
