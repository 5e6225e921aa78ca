"""The audit of checkpoints: every version of their rows, recorded by a trigger.

The trigger writes in the transaction that changes the row, so the audit has exactly what was
committed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

if TYPE_CHECKING:
    from collections.abc import Iterable

_INSTALL = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.versions (
    version bigserial PRIMARY KEY, at timestamptz, op text, checkpoint_id uuid, user_id text,
    number bigint, session_id uuid, state text, reason text, failure text, sha256 bytea,
    pinned boolean
);
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
    IF TG_OP = 'DELETE' THEN r := OLD; ELSE r := NEW; END IF;
    INSERT INTO chaos.versions (at, op, checkpoint_id, user_id, number, session_id, state, reason,
                                failure, sha256, pinned)
    VALUES (clock_timestamp(), TG_OP, r.checkpoint_id, r.user_id, r.number, r.session_id, r.state,
            r.reason, r.failure, r.sha256, r.pinned);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER INSERT OR UPDATE OR DELETE ON checkpoints
    FOR EACH ROW EXECUTE FUNCTION chaos.note();
"""
_VERSIONS = """
SELECT extract(epoch FROM at)::float8 AS at, op, checkpoint_id::text, user_id, number,
       session_id::text, state, reason, failure, encode(sha256, 'hex') AS sha256, pinned
FROM chaos.versions ORDER BY version
"""
NEVER = float("inf")
#: SHA-256 of a state → the count in it.
_COUNTS = {hashlib.sha256(f"{count}\n".encode()).hexdigest(): count for count in range(5000)}


@dataclass(frozen=True, slots=True)
class AuditedCheckpoint:
    """The life of one checkpoint. Times are unix seconds, infinite for what did not happen."""

    checkpoint_id: str
    key: str
    number: int
    session: str
    reason: str
    began: float
    ready: float = NEVER
    gone: float = NEVER
    sha256: str = ""
    failure: str = ""
    changed: bool = False
    """Whether its SHA-256 changed after it was READY."""

    @property
    def value(self) -> int | None:
        """The count in its state; None if there is none."""
        return _COUNTS.get(self.sha256)


@dataclass
class Audit:
    """All checkpoints that ever existed, by id."""

    checkpoints: dict[str, AuditedCheckpoint] = field(default_factory=dict)

    def of(self, key: str) -> list[AuditedCheckpoint]:
        """Those of a key that were READY, oldest first."""
        found = [
            each for each in self.checkpoints.values() if each.key == key and each.ready < NEVER
        ]
        return sorted(found, key=lambda each: each.number)

    def numbered(self, key: str, number: int) -> AuditedCheckpoint | None:
        """The key's checkpoint of this number, if it was READY; else None."""
        return next((each for each in self.of(key) if each.number == number), None)


def read(versions: Iterable[dict[str, Any]]) -> Audit:
    """Build the audit from the versions of the rows. Any: columns of several types."""
    audit = Audit()
    for row in versions:
        name, at = row["checkpoint_id"], row["at"]
        kept = audit.checkpoints.get(name) or AuditedCheckpoint(
            name, row["user_id"], row["number"], row["session_id"], row["reason"], at
        )
        sha256, failure = row["sha256"] or "", row["failure"] or ""
        if row["state"] == "READY" and kept.ready == NEVER:
            kept = replace(kept, ready=at, sha256=sha256)
        if row["op"] == "DELETE" or row["state"] in ("DELETING", "FAILED"):
            kept = replace(kept, gone=min(kept.gone, at), failure=failure or kept.failure)
        changed = kept.changed or (kept.ready < NEVER and sha256 != kept.sha256)
        audit.checkpoints[name] = replace(kept, changed=changed)
    return audit


async def install(url: str) -> None:
    """Install the trigger."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(_INSTALL)


async def collect(url: str) -> Audit:
    """Read the audit."""
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, row_factory=dict_row
    ) as connection:
        return read(await (await connection.execute(_VERSIONS)).fetchall())
