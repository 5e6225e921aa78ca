"""The report of an import, as text or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TextIO

from session_service.adoption import storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.adoption.storage import ReportRow
    from session_service.storage.database import Connection

Count = tuple[str, str | None, int]

#: The meaning of each result, in the order of the report.
RESULTS = {
    "ACTIVE": "adopted, ACTIVE: the first start probes the machine",
    "SUSPENDED": "adopted, PAUSED (suspended)",
    "STOPPED": "adopted, PAUSED (stopped)",
    "EMPTY": "adopted, PAUSED without a container: the next start creates one",
    "LOST": "adopted, PAUSED: the container was lost; the next start creates one",
    "SUPERSEDED": "imported as ENDED: a newer row has the key",
    "ENDED": "imported as ENDED: had ended before",
    "THERE_ALREADY": "imported before, unchanged",
    "LEFT_OUT": "left out by --status",
    "SKIPPED": "skipped",
}
_HEAD = ("row", "project", "user", "status", "result", "why")


async def write(connection: Connection, out: TextIO, *, as_json: bool, dry_run: bool) -> bool:
    """Write the report of the connection's import. Returns whether no row was skipped."""
    counts = await storage.counts(connection)
    if as_json:
        await _json(connection, out, counts, dry_run=dry_run)
    else:
        await _text(connection, out, counts, dry_run=dry_run)
    return all(result != "SKIPPED" for result, _, _ in counts)


async def _json(
    connection: Connection, out: TextIO, counts: Sequence[Count], *, dry_run: bool
) -> None:
    """One JSON object. Its rows are written as they are read, so that memory stays bounded."""
    head = {
        "dry_run": dry_run,
        "rows_read": sum(count for _, _, count in counts),
        "results": {result: _sum(counts, result) for result in RESULTS},
        "skipped": {str(reason): count for word, reason, count in counts if word == "SKIPPED"},
    }
    out.write(json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "rows": [')
    between = "\n    "
    async for row in storage.report_rows(connection):
        out.write(between + json.dumps(_object(row)))
        between = ",\n    "
    out.write("\n  ]\n}\n")


def _object(row: ReportRow) -> dict[str, str | None]:
    return {
        "row": row.old_id,
        "project_id": row.project_id,
        "user_id": row.user_id,
        "status": row.word,
        "result": row.result,
        "reason": row.reason,
        "detail": row.detail,
        "session_id": row.session_id if row.result == "SUPERSEDED" else None,
    }


async def _text(
    connection: Connection, out: TextIO, counts: Sequence[Count], *, dry_run: bool
) -> None:
    total = sum(count for _, _, count in counts)
    out.write(f"{total} rows read{' (dry run: nothing is written)' if dry_run else ''}\n")
    for result, sentence in RESULTS.items():
        if count := _sum(counts, result):
            out.write(f"{count:>9}  {result:<14} {sentence}\n")
    for word, reason, count in counts:
        if word == "SKIPPED":
            out.write(f"{count:>18}  {reason}\n")
    first = True
    async for row in storage.report_rows(connection):
        if first:
            out.write("\n" + _line(_HEAD))
            first = False
        why = f"{row.reason}: {row.detail}" if row.reason else row.detail
        key = (row.project_id or "-", row.user_id or "-")
        out.write(_line((row.old_id, *key, row.word, row.result, why)))


def _line(cells: Sequence[str]) -> str:
    """A line of the table; its last cell is a sentence and is not padded."""
    *short, last = cells
    return "  ".join([*(f"{cell:<12}" for cell in short), last]) + "\n"


def _sum(counts: Sequence[Count], result: str) -> int:
    return sum(count for word, _, count in counts if word == result)
