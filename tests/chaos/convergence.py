"""Convergence: after the last fault, rows and machines must agree again without help."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
from psycopg.rows import dict_row

from local.stack.programs import TOKEN
from session_service.checkpoints.retention import Retention
from session_service.storage.database import Database
from tests.chaos.provider_log import SessionRow
from tests.chaos.rig import APP

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

_SESSIONS = """
SELECT session_id::text, user_id, state, transition, pause_depth, end_reason, epoch, generation,
       lease_until, deadline, due_at, now() AS now, verified_at
FROM sessions ORDER BY create_time
"""
_CONTAINERS = """
SELECT session_id::text, generation, container_id, state, wanted, destroy_time, create_time
FROM containers
"""
#: Sessions whose events are not numbered 1 to the row's count, or end in another state.
_INCONSISTENT_EVENTS = """
SELECT s.session_id::text, s.user_id, s.state, s.event_sequence, count(e.sequence) AS events,
       max(e.sequence) AS newest, (array_agg(e.state ORDER BY e.sequence DESC))[1] AS last_state
FROM sessions s LEFT JOIN session_events e USING (session_id)
GROUP BY s.session_id
HAVING count(e.sequence) <> s.event_sequence OR max(e.sequence) IS DISTINCT FROM s.event_sequence
    OR (array_agg(e.state ORDER BY e.sequence DESC))[1] IS DISTINCT FROM s.state
"""
#: Checkpoints that are being written or deleted, and chunks of checkpoints that are not READY.
_UNFINISHED = """
SELECT user_id, checkpoint_id::text || ', number ' || number || ', is ' || state AS line
FROM checkpoints WHERE state NOT IN ('READY', 'FAILED')
UNION
SELECT c.user_id, c.checkpoint_id::text || ', number ' || c.number || ', is ' || c.state
       || ' and has chunks'
FROM checkpoints c JOIN checkpoint_chunks USING (checkpoint_id) WHERE c.state <> 'READY'
"""
LIVE = ("STARTING", "ACTIVE", "PAUSING", "PAUSED")
GONE = ("destroyed", "destroying")
# Any: rows and JSON with values of several types.
Row = dict[str, Any]


class StateSnapshot:
    """The rows and the provider's machines at one time."""

    def __init__(
        self,
        sessions: list[Row],
        containers: list[Row],
        machines: list[Row],
        inconsistent: list[Row],
    ) -> None:
        self._inconsistent = inconsistent
        self.sessions = {row["session_id"]: row for row in sessions}
        self.containers = containers
        self.machines = [m for m in machines if m["state"] not in GONE]

    def problems(self) -> list[str]:
        """What is not consistent (yet), one line each."""
        return [
            *self._in_flight(),
            *self._two_live(),
            *self._active_without_machine(),
            *self._orphaned_machines(),
            *self._running_without_active_session(),
            *self._unwanted(),
            *self._inconsistent_events(),
        ]

    def _in_flight(self) -> list[str]:
        return [
            f"{row['session_id']} of {row['user_id']} is {row['state']}: {row['transition']}"
            for row in self.sessions.values()
            if row["transition"] is not None
        ]

    def _two_live(self) -> list[str]:
        live = Counter(row["user_id"] for row in self.sessions.values() if row["state"] in LIVE)
        return [f"{key} has {count} live sessions" for key, count in live.items() if count > 1]

    def _active_without_machine(self) -> list[str]:
        started = {m["id"] for m in self.machines if m["state"] == "started"}
        return [
            f"{row['session_id']} of {row['user_id']} is ACTIVE, its machine does not run"
            for row in self.sessions.values()
            if row["state"] == "ACTIVE" and self._machine_of(row) not in started
        ]

    def _orphaned_machines(self) -> list[str]:
        known = {c["container_id"] for c in self.containers if c["destroy_time"] is None}
        return [
            f"machine {m['id']} ({m['name']}) is {m['state']} and belongs to no session"
            for m in self.machines
            if m["id"] not in known
        ]

    def _running_without_active_session(self) -> list[str]:
        wanted = {self._machine_of(r) for r in self.sessions.values() if r["state"] == "ACTIVE"}
        return [
            f"machine {m['id']} ({m['name']}) runs, and its session is not ACTIVE"
            for m in self.machines
            if m["state"] == "started" and m["id"] not in wanted
        ]

    def _unwanted(self) -> list[str]:
        return [
            f"container {c['session_id']}-{c['generation']} is not wanted and not destroyed"
            for c in self.containers
            if not c["wanted"] and c["destroy_time"] is None
        ]

    def _inconsistent_events(self) -> list[str]:
        return [
            f"{row['session_id']} is {row['state']} with event_sequence {row['event_sequence']}; "
            f"it has {row['events']} events up to {row['newest']}, the last one {row['last_state']}"
            for row in self._inconsistent
        ]

    def _machine_of(self, row: Row) -> str | None:
        for container in self.containers:
            same = container["session_id"] == row["session_id"]
            if same and container["generation"] == row["generation"]:
                found: str | None = container["container_id"]
                return found
        return None

    def rows(self) -> dict[str, SessionRow]:
        """The rows, for the checks of the provider's log."""
        return {
            session: SessionRow(session, row["user_id"], row["state"], row["end_reason"] or "")
            for session, row in self.sessions.items()
        }


async def take_snapshot(rig: Rig) -> StateSnapshot:
    """Read the rows and the machines."""
    async with await psycopg.AsyncConnection.connect(
        rig.database_url, autocommit=True, row_factory=dict_row
    ) as connection:
        sessions = await (await connection.execute(_SESSIONS)).fetchall()
        containers = await (await connection.execute(_CONTAINERS)).fetchall()
        inconsistent = await (await connection.execute(_INCONSISTENT_EVENTS)).fetchall()
    async with httpx.AsyncClient(base_url=rig.stack.fly_url, trust_env=False) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = await client.get(f"/v1/apps/{APP}/machines", headers=headers)
        answer.raise_for_status()
    return StateSnapshot(sessions, containers, answer.json(), inconsistent)


async def until_converged(rig: Rig, timeout: float) -> tuple[StateSnapshot, float]:
    """Take snapshots until one has no problems, for at most `timeout` s.

    Returns the last snapshot, and the seconds until it was taken.
    """
    began = monotonic()
    while True:
        snapshot = await take_snapshot(rig)
        took = monotonic() - began
        if not snapshot.problems() or took > timeout:
            return snapshot, took
        await asyncio.sleep(0.1)


async def unfinished_checkpoints(url: str, patience: float) -> list[tuple[str, str]]:
    """The key, and a line, of each checkpoint that stays partly written or partly deleted.

    The replicas' own retention pass runs once a minute, and scheduled checkpoints continue. So this
    runs retention passes of its own until nothing is left, for at most `patience` s.
    """
    until = monotonic() + patience
    async with Database(url, max_size=2) as database:
        retention = Retention(database, None)
        while True:
            await retention.shot()
            found = await _unfinished(url)
            if not found or monotonic() > until:
                return found
            await asyncio.sleep(0.1)


async def _unfinished(url: str) -> list[tuple[str, str]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        rows = await (await connection.execute(_UNFINISHED)).fetchall()
    return [(str(key), str(line)) for key, line in rows]
