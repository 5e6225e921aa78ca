"""The history that the model checks: every call with its request and its answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

#: Errors that leave open whether the call took effect.
UNCLEAR = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "UNKNOWN", "INTERNAL"}
)
#: Calls whose answer has a session that was started.
OPENING = frozenset({"StartSession", "ResumeSession", "RestoreCheckpoint", "ForkSession"})
#: Longest time, in s, after which a call can still commit when its caller has given up: it may wait
#: for a connection of the pool and for the lock of a row.
COMMIT_DELAY = 10.0
NEVER_OVER = float("inf")


@dataclass(frozen=True, slots=True)
class Shown:
    """A checkpoint in an answer."""

    checkpoint_id: str
    number: int
    state: str
    sha256: str
    pinned: bool


@dataclass(slots=True)
class Call:
    """One call, or one click on a preview (`method` is `click`). Times are unix seconds."""

    number: int
    caller: str
    key: str
    method: str
    began: float
    replica: int = 0
    request_id: str = ""
    request_session: str = ""
    """The session id in the request."""
    mode: str = ""
    min_continuity: int = 0
    """0 if not set."""
    depth: str = ""
    now: bool = False
    checkpoint_id: str = ""
    """The checkpoint id in the request."""
    checkpoint_number: int = 0
    """The checkpoint number in the request."""
    pin: bool = False
    deadline: float = 30.0

    ended: float = NEVER_OVER
    status: str = ""
    """OK or the gRPC status; empty while in progress. Of a click: OK, REFUSED or UNKNOWN."""
    reason: str = ""
    has_retry_info: bool = False
    """Whether the error has RetryInfo."""
    message: str = ""
    answer_session: str = ""
    """The session id in the answer."""
    state: str = ""
    generation: int = 0
    outcome: str = ""
    continuity: int = 0
    verified: bool = False
    joined: bool = False
    decision_id: str = ""
    attempts: tuple[str, ...] = ()
    restored_number: int = 0
    """The number of the restored checkpoint; 0 for none."""
    checkpoints: tuple[Shown, ...] = ()
    """The checkpoints in the answer."""
    verify_time: float = 0.0
    machine: str = ""
    url: str = ""
    hold_until: float = 0.0
    """The expiry of a hold."""
    value: int | None = None
    """The count that a click returned."""

    first_began: float = 0.0
    """When the first call with this request id began: the effect may be that early."""
    replay: bool = False
    """Whether an earlier call with this request id was answered before it began."""

    @property
    def ok(self) -> bool:
        """Whether it was answered with OK."""
        return self.status == "OK"

    @property
    def unreached(self) -> bool:
        """Whether it certainly was not sent: gRPC could not connect."""
        no_connection = "failed to connect to all addresses" in self.message
        return self.status == "UNAVAILABLE" and not self.reason and no_connection

    @property
    def unclear(self) -> bool:
        """Whether it is unknown if the call took or will take effect."""
        return (self.status in UNCLEAR or not self.status) and not self.unreached

    @property
    def recorded(self) -> tuple[object, ...]:
        """The part of the answer that must be equal in every repeat."""
        if not self.ok:
            return (self.status, self.reason)
        made = self.checkpoints if self.method == "CreateCheckpoint" else ()
        return (
            "OK",
            self.answer_session,
            self.outcome,
            self.continuity,
            self.verified,
            self.joined,
            self.decision_id,
            self.attempts,
            self.restored_number,
            tuple(shown.checkpoint_id for shown in made),
        )

    @property
    def last_effect(self) -> float:
        """The last time at which it may still take effect."""
        return self.ended + COMMIT_DELAY if self.unclear else self.ended

    def may_overlap(self, begin: float, end: float) -> bool:
        """Whether its effect may happen in this time."""
        return self.first_began <= end and self.last_effect >= begin

    def row(self, zero: float) -> str:
        """One line of a report; times are in seconds since `zero`."""
        request = [
            self.mode,
            self.depth,
            f"min={self.min_continuity}" if self.min_continuity else "",
        ]
        request += [
            "now" if self.now else "",
            self.request_session[-12:],
            f"id={self.request_id[:8]}",
        ]
        request += [
            f"#{self.checkpoint_number}" if self.checkpoint_number else "",
            self.checkpoint_id[-12:],
        ]
        answer = [
            self.status,
            self.reason,
            self.answer_session[-12:],
            self.state,
            self.outcome,
        ]
        answer += [f"gen={self.generation}" if self.generation else ""]
        answer += [f"cont={self.continuity}{'!' if self.verified else '?'}" if self.outcome else ""]
        answer += ["joined" if self.joined else "", "replay" if self.replay else ""]
        answer += [f"value={self.value}" if self.value is not None else "", self.machine]
        answer += [f"restored=#{self.restored_number}" if self.restored_number else ""]
        answer += [f"#{each.number}={each.state}" for each in self.checkpoints]
        answer += [self.decision_id[-12:], ",".join(self.attempts), self.message[:90]]
        seen = f" seen={self.verify_time - zero:.3f}" if self.verify_time else ""
        return (
            f"  {self.began - zero:8.3f} {self.ended - zero:8.3f} {self.caller}@{self.replica} "
            f"{self.method} {' '.join(filter(None, request))} -> "
            f"{' '.join(filter(None, answer))}{seen}"
        )


@dataclass
class History:
    """All calls, in the order in which they began."""

    calls: list[Call] = field(default_factory=list)
    first: dict[tuple[str, str], float] = field(default_factory=dict)
    answered: set[tuple[str, str]] = field(default_factory=set)

    def begin(self, call: Call) -> Call:
        """Record a call that is about to be made."""
        name = (call.method, call.request_id)
        call.first_began = call.began
        if call.request_id:
            call.first_began = self.first.setdefault(name, call.began)
            call.replay = name in self.answered
        self.calls.append(call)
        return call

    def end(self, call: Call, at: float) -> None:
        """Record its end at the time `at`."""
        call.ended = at
        if call.ok and call.request_id:
            self.answered.add((call.method, call.request_id))

    def by_key(self) -> dict[str, list[Call]]:
        """The calls of each key."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            found[call.key].append(call)
        return dict(found)
