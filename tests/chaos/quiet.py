"""After the faults: what must come to hold by itself, and how long that took."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
from psycopg.rows import dict_row

from local.stack_parts import TOKEN
from tests.chaos.ledger import SessionRow
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
#: Sessions whose events are not 1, 2, 3 … up to the row's own count, or end in another state.
_TORN = """
SELECT s.session_id::text, s.user_id, s.state, s.event_sequence, count(e.sequence) AS events,
       max(e.sequence) AS newest, (array_agg(e.state ORDER BY e.sequence DESC))[1] AS told
FROM sessions s LEFT JOIN session_events e USING (session_id)
GROUP BY s.session_id
HAVING count(e.sequence) <> s.event_sequence OR max(e.sequence) IS DISTINCT FROM s.event_sequence
    OR (array_agg(e.state ORDER BY e.sequence DESC))[1] IS DISTINCT FROM s.state
"""
LIVE = ("STARTING", "ACTIVE", "PAUSING", "PAUSED")
GONE = ("destroyed", "destroying")
# Any: rows and JSON of columns of every type.
Row = dict[str, Any]


class Picture:
    """The rows and the machines as they are at one time."""

    def __init__(
        self, sessions: list[Row], containers: list[Row], machines: list[Row], torn: list[Row]
    ) -> None:
        self._torn = torn
        self.sessions = {row["session_id"]: row for row in sessions}
        self.containers = containers
        self.machines = [m for m in machines if m["state"] not in GONE]

    def unsettled(self) -> list[str]:
        """What does not hold (yet), a line each."""
        return [
            *self._in_flight(),
            *self._two_live(),
            *self._active_without_machine(),
            *self._machines_without_session(),
            *self._running_of_none(),
            *self._unwanted(),
            *self._torn_events(),
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

    def _machines_without_session(self) -> list[str]:
        known = {c["container_id"] for c in self.containers if c["destroy_time"] is None}
        return [
            f"machine {m['id']} ({m['name']}) is {m['state']} and no session's"
            for m in self.machines
            if m["id"] not in known
        ]

    def _running_of_none(self) -> list[str]:
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

    def _torn_events(self) -> list[str]:
        return [
            f"{row['session_id']} is {row['state']} with {row['event_sequence']} events told; "
            f"kept are {row['events']} up to {row['newest']}, the last one {row['told']}"
            for row in self._torn
        ]

    def _machine_of(self, row: Row) -> str | None:
        for container in self.containers:
            same = container["session_id"] == row["session_id"]
            if same and container["generation"] == row["generation"]:
                found: str | None = container["container_id"]
                return found
        return None

    def rows(self) -> dict[str, SessionRow]:
        """What the checks of the provider's log need of each session."""
        return {
            session: SessionRow(session, row["user_id"], row["state"], row["end_reason"] or "")
            for session, row in self.sessions.items()
        }


async def look(rig: Rig) -> Picture:
    """Read both sides now."""
    async with await psycopg.AsyncConnection.connect(
        rig.database_url, autocommit=True, row_factory=dict_row
    ) as connection:
        sessions = await (await connection.execute(_SESSIONS)).fetchall()
        containers = await (await connection.execute(_CONTAINERS)).fetchall()
        torn = await (await connection.execute(_TORN)).fetchall()
    async with httpx.AsyncClient(base_url=rig.stack.fly_url, trust_env=False) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = await client.get(f"/v1/apps/{APP}/machines", headers=headers)
        answer.raise_for_status()
    return Picture(sessions, containers, answer.json(), torn)


async def until_quiet(rig: Rig, timeout: float) -> tuple[Picture, float]:
    """Look until everything holds, for at most `timeout` s; the last look, and how long it took."""
    began = monotonic()
    while True:
        picture = await look(rig)
        took = monotonic() - began
        if not picture.unsettled() or took > timeout:
            return picture, took
        await asyncio.sleep(0.1)
