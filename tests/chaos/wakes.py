"""The runs of paused machines that Roost woke itself, in order to save their state.

A pause that is deepened starts the machine, saves the state, and stops or destroys the machine. If
a caller wants the session meanwhile, the machine is left running and the start answers `REUSED`.

The starts are those of the provider's log. The events of the sessions only say at which times a
pause was being deepened: any other start of a paused session is none of these runs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

if TYPE_CHECKING:
    from collections.abc import Iterable

_EVENTS = """
SELECT session_id::text, state, details->>'cause' AS cause,
       extract(epoch FROM create_time)::float8 AS at
FROM session_events ORDER BY session_id, sequence
"""
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Deepening:
    """A time (unix seconds) in which a session's pause was being deepened."""

    session: str
    began: float
    ended: float = FOREVER


@dataclass(frozen=True, slots=True)
class Wake:
    """A run of a machine that was woken to be saved. Unix seconds."""

    began: float
    ended: float = FOREVER
    cold: bool = False
    """Whether it began with a cold boot, so that nothing was in memory."""


@dataclass
class Wakes:
    """All such runs, by session."""

    runs: dict[str, list[Wake]] = field(default_factory=dict)

    def between(self, session: str, since: float, begin: float, end: float) -> list[Wake]:
        """The runs of the session that began after `since` and lasted into the time from `begin`
        to `end`.
        """
        runs = self.runs.get(session, [])
        return [run for run in runs if since < run.began <= end and run.ended > begin]


def read(events: Iterable[dict[str, Any]]) -> list[Deepening]:
    """The deepenings that the sessions' events show. Any: columns of several types.

    A takeover does not end a deepening: the session stays PAUSING.
    """
    by_session: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_session[event["session_id"]].append(event)
    found: list[Deepening] = []
    for session, rows in by_session.items():
        for number, row in enumerate(rows):
            if row["state"] == "PAUSING" and row["cause"] == "DEEPEN":
                later = (each["at"] for each in rows[number + 1 :] if each["state"] != "PAUSING")
                found.append(Deepening(session, row["at"], next(later, FOREVER)))
    return found


async def collect(url: str) -> list[Deepening]:
    """Read the events."""
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, row_factory=dict_row
    ) as connection:
        return read(await (await connection.execute(_EVENTS)).fetchall())
