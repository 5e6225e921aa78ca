"""What callers saw of one key whose state is saved, and which counts it can be brought back to.

A checkpoint's SHA-256 tells its count. When it was READY, and gone, is known to the database alone
(`audit`); all else is what callers saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.history import OPENING, Call
from tests.chaos.model_memory import GONE_ON_WITH
from tests.chaos.projects import saves

if TYPE_CHECKING:
    from tests.chaos.audit import Audit, Kept
    from tests.chaos.model_memory import Boots

ROLLBACKS = frozenset({"RestoreCheckpoint", "ForkSession"})
LONG_AGO = float("-inf")


@dataclass(frozen=True)
class States:
    """One key's calls, and the checkpoints that its sessions could be brought back from."""

    key: str
    calls: list[Call]
    boots: Boots
    audit: Audit

    def clicks(self, session: str) -> list[Call]:
        """The session's clicks, in order: they never overlap."""
        return [call for call in self.calls if call.method == "click" and call.asked == session]

    def openings(self, session: str, begin: float, end: float) -> list[Call]:
        """Calls that may have brought the session to life in this time."""
        return [
            call
            for call in self.calls
            if call.method in OPENING and call.touches(begin, end)
            if (call.ok and call.named == session) or _may_open(call, session)
        ]

    def held_by(self, opening: Call) -> set[int] | None:
        """The counts that may be of the checkpoint that an answer says was brought back; None where
        none is known by that number.
        """
        if opening.method == "ForkSession":
            kept = self.audit.kept.get(opening.target)
            found = [kept] if kept is not None else []
        else:
            found = self._numbered(opening.named, opening.restored)
        counts = {kept.value for kept in found if kept.value is not None}
        return counts or None

    def _numbered(self, session: str, number: int) -> list[Kept]:
        """Of the key; or what its session was forked from, whose number another key has counted."""
        own = self.audit.numbered(self.key, number)
        forks = [call for call in self.calls if call.method == "ForkSession"]
        sources = [self.audit.kept.get(call.target) for call in forks if call.named == session]
        found = [kept for kept in sources if kept is not None and kept.number == number]
        return [*found, *([own] if own is not None else [])]

    def rolled_back(self, session: str, begin: float, end: float) -> bool:
        """Whether a rollback may have been at work on the session in this time."""
        return any(
            call.since <= end and call.settled + (GONE_ON_WITH if call.unclear else 0) >= begin
            for call in self.calls
            if call.method == "RestoreCheckpoint" and call.asked == session
            if call.ok or call.unclear
        )

    def brought_back(self, session: str, before: Call | None, click: Call) -> frozenset[int]:
        """The counts that may have been restored between two clicks of the session.

        Those that answers told; of an answer that nobody got, any that the key had.
        """
        if not saves(self.key):
            return frozenset()
        begin = LONG_AGO if before is None else before.began
        counts: set[int] = set()
        for opening in self.openings(session, begin, click.ended):
            if opening.ok and opening.outcome != "RESTORED":
                continue
            known = self.held_by(opening) if opening.ok else None
            counts |= self.any_count() if known is None else known
        if self.rolled_back(session, begin, click.ended):
            counts |= self.any_count()
        return frozenset(counts)

    def any_count(self) -> set[int]:
        """All counts that the key ever saved, or that a fork brought to it."""
        forked = [self.audit.kept.get(call.target) for call in self.calls if call.target]
        every = [*self.audit.of(self.key), *(kept for kept in forked if kept is not None)]
        return {kept.value for kept in every if kept.value is not None}


def _may_open(call: Call, session: str) -> bool:
    """Whether it was not answered, and may have been about the session."""
    return call.unclear and call.asked in ("", session)
