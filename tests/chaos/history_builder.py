"""Builders of histories for the tests of the model: calls and clicks with chosen answers."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from tests.chaos.checkpoint_audit import Audit, AuditedCheckpoint
from tests.chaos.history import Call, History, Shown
from tests.chaos.model import judge
from tests.chaos.model_memory import Boots
from tests.chaos.wakes import Wake, Wakes

#: Two sessions.
A, B = "session-a", "session-b"
#: The fields of a call that belong to its request; all others belong to its answer.
REQUEST_FIELDS = (
    *("request_id", "hold_until", "request_session", "mode", "min_continuity", "depth", "now"),
    *("checkpoint_number", "checkpoint_id"),
)


class HistoryBuilder:
    """A history of one key, with one call per second unless `lasts` is longer."""

    key = "wren"

    def __init__(self) -> None:
        self.history = History()
        self.audit = Audit()
        self.boots = Boots()
        self.wakes = Wakes()
        self.now = 100.0

    def add(self, method: str, *, lasts: float = 0.5, **fields: Any) -> Call:
        """Add one call that was answered OK. Any: the fields of `Call`."""
        call = Call(len(self.history.calls), "c", self.key, method, self.now)
        for name in REQUEST_FIELDS:
            if name in fields:
                setattr(call, name, fields.pop(name))
        self.history.begin(call)
        call.status = "OK"
        for name, value in fields.items():
            setattr(call, name, value)
        self.history.end(call, self.now + lasts)
        self.now += 1.0
        return call

    def start(self, answer_session: str = A, outcome: str = "REUSED", **fields: Any) -> Call:
        """Add a StartSession. Any: the fields of `Call`."""
        created = outcome == "CREATED"
        given: dict[str, Any] = {
            "state": "ACTIVE",
            "generation": 1,
            "continuity": 1 if created else 4,
            "verified": True,
            "verify_time": self.now,
            "attempts": (),
        }
        return self.add(
            "StartSession", answer_session=answer_session, outcome=outcome, **given | fields
        )

    def click(self, value: int | None, request_session: str = A, status: str = "OK") -> Call:
        """Add a click on the session's counter, answered with `value`."""
        return self.add("click", request_session=request_session, value=value, status=status)

    def end(self, session: str = A, **fields: Any) -> Call:
        """Add an EndSession. Any: the fields of `Call`."""
        return self.add(
            "EndSession", request_session=session, answer_session=session, state="ENDED", **fields
        )

    def wake(self, lasts: float = 600.0, *, cold: bool = False) -> None:
        """Add the start by which Roost saves session A; the machine runs for so long, in s."""
        self.wakes.runs.setdefault(A, []).append(Wake(self.now, self.now + lasts, cold))
        self.now += 1.0

    def broken_rules(self, boots: Boots | None = None) -> set[str]:
        """The rules that the history breaks; `boots` replaces `self.boots`."""
        found = judge(self.history.by_key(), boots or self.boots, self.audit, self.wakes)
        return {violation.rule for violation in found}


class CheckpointHistoryBuilder(HistoryBuilder):
    """A history of a key whose state is saved, with the audit of its checkpoints."""

    key = "saved-00"

    def add_checkpoint(self, number: int, count: int, session: str = A, **more: Any) -> Shown:
        """Add a checkpoint that took half a second. Any: the fields of `AuditedCheckpoint`."""
        sha256 = hashlib.sha256(f"{count}\n".encode()).hexdigest()
        checkpoint = AuditedCheckpoint(
            f"id-{number}", self.key, number, session, "SCHEDULE", self.now, self.now + 0.5
        )
        self.audit.checkpoints[checkpoint.checkpoint_id] = replace(
            checkpoint, sha256=sha256, **more
        )
        self.now += 1.0
        return Shown(checkpoint.checkpoint_id, number, "READY", sha256, pinned=False)

    def create_checkpoint(self, number: int, count: int) -> Call:
        """Add a CreateCheckpoint and its checkpoint."""
        at = self.now
        shown = self.add_checkpoint(number, count)
        self.now = at
        return self.add("CreateCheckpoint", request_session=A, checkpoints=(shown,))

    def stop(self) -> Call:
        """Add a StopSession, which saves the state."""
        return self.add("StopSession", request_session=A, answer_session=A, state="PAUSED")

    def restore(self, number: int, method: str = "StartSession", **fields: Any) -> Call:
        """Add a call that restored a checkpoint. Any: the fields of `Call`."""
        given: dict[str, Any] = {
            "outcome": "RESTORED",
            "continuity": 2,
            "restored_number": number,
            "answer_session": A,
        }
        if method == "StartSession":
            return self.start(**(given | fields))
        given |= {"state": "ACTIVE", "verified": True, "checkpoint_number": number}
        return self.add(method, **(given | fields))
