"""What callers asked and were answered: the history that the model judges."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

#: Failures that say nothing of whether it was done.
UNCLEAR = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "UNKNOWN", "INTERNAL"}
)
#: Calls that are answered with a session that was brought to life.
OPENING = frozenset({"StartSession", "ResumeSession", "RestoreCheckpoint", "ForkSession"})
#: How long after its caller gave up a call may still commit its intent, in s: a wait for a
#: connection of the pool, and for a row's lock.
LINGER = 10.0
NEVER_OVER = float("inf")


@dataclass(frozen=True, slots=True)
class Shown:
    """A checkpoint as a caller was shown it."""

    checkpoint_id: str
    number: int
    state: str
    sha256: str
    pinned: bool


@dataclass(slots=True)
class Call:
    """One call, or one click on a preview (`method` is then `click`). Times are unix seconds."""

    number: int
    caller: str
    key: str
    method: str
    began: float
    replica: int = 0
    request_id: str = ""
    asked: str = ""
    """The session that the call named."""
    mode: str = ""
    least: int = 0
    """min_continuity; 0 is none."""
    depth: str = ""
    now: bool = False
    target: str = ""
    """The checkpoint that the call named by its id."""
    which: int = 0
    """The checkpoint that the call named by its number."""
    pin: bool = False
    deadline: float = 30.0

    ended: float = NEVER_OVER
    status: str = ""
    """OK or the gRPC status; empty while it is in flight. Of a click: OK, REFUSED or UNKNOWN."""
    reason: str = ""
    retry: bool = False
    """Whether the error said when to try again."""
    message: str = ""
    named: str = ""
    """The session in the answer."""
    state: str = ""
    generation: int = 0
    outcome: str = ""
    continuity: int = 0
    verified: bool = False
    joined: bool = False
    decision_id: str = ""
    attempts: tuple[str, ...] = ()
    restored: int = 0
    """The number of the checkpoint whose state was brought back; 0: of none."""
    checkpoints: tuple[Shown, ...] = ()
    """What checkpoints the answer showed."""
    verify_time: float = 0.0
    machine: str = ""
    url: str = ""
    until: float = 0.0
    """When the hold that was put runs out."""
    value: int | None = None
    """What the counter said to a click."""

    since: float = 0.0
    """When the first call with this request id began: its work may be that old."""
    replay: bool = False
    """Whether an earlier call with its request id was answered already."""

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.status == "OK"

    @property
    def unreached(self) -> bool:
        """Whether it certainly was never sent: gRPC found nobody to send it to."""
        nobody = "failed to connect to all addresses" in self.message
        return self.status == "UNAVAILABLE" and not self.reason and nobody

    @property
    def unclear(self) -> bool:
        """Whether it may have been done or not, or be done still."""
        return (self.status in UNCLEAR or not self.status) and not self.unreached

    @property
    def recorded(self) -> tuple[object, ...]:
        """What a repeat must be answered with."""
        if not self.ok:
            return (self.status, self.reason)
        made = self.checkpoints if self.method == "CreateCheckpoint" else ()
        return (
            "OK",
            self.named,
            self.outcome,
            self.continuity,
            self.verified,
            self.joined,
            self.decision_id,
            self.attempts,
            self.restored,
            tuple(shown.checkpoint_id for shown in made),
        )

    @property
    def settled(self) -> float:
        """From when on it has no effect that is not there yet."""
        return self.ended + LINGER if self.unclear else self.ended

    def touches(self, begin: float, end: float) -> bool:
        """Whether what it does may happen in this time."""
        return self.since <= end and self.settled >= begin

    def row(self, zero: float) -> str:
        """One line of a key's history, times in seconds since the run began."""
        asked = [self.mode, self.depth, f"least={self.least}" if self.least else ""]
        asked += ["now" if self.now else "", self.asked[-12:], f"id={self.request_id[:8]}"]
        asked += [f"#{self.which}" if self.which else "", self.target[-12:]]
        told = [self.status, self.reason, self.named[-12:], self.state, self.outcome]
        told += [f"gen={self.generation}" if self.generation else ""]
        told += [f"cont={self.continuity}{'!' if self.verified else '?'}" if self.outcome else ""]
        told += ["joined" if self.joined else "", "replay" if self.replay else ""]
        told += [f"value={self.value}" if self.value is not None else "", self.machine]
        told += [f"restored=#{self.restored}" if self.restored else ""]
        told += [f"#{each.number}={each.state}" for each in self.checkpoints]
        told += [self.decision_id[-12:], ",".join(self.attempts), self.message[:90]]
        seen = f" seen={self.verify_time - zero:.3f}" if self.verify_time else ""
        return (
            f"  {self.began - zero:8.3f} {self.ended - zero:8.3f} {self.caller}@{self.replica} "
            f"{self.method} {' '.join(filter(None, asked))} -> "
            f"{' '.join(filter(None, told))}{seen}"
        )


@dataclass
class History:
    """All calls, by key, in the order of their begin."""

    calls: list[Call] = field(default_factory=list)
    first: dict[tuple[str, str], float] = field(default_factory=dict)
    answered: set[tuple[str, str]] = field(default_factory=set)

    def begin(self, call: Call) -> Call:
        """Note a call that is about to be made."""
        name = (call.method, call.request_id)
        call.since = call.began
        if call.request_id:
            call.since = self.first.setdefault(name, call.began)
            call.replay = name in self.answered
        self.calls.append(call)
        return call

    def end(self, call: Call, at: float) -> None:
        """Note that it was answered, or failed."""
        call.ended = at
        if call.ok and call.request_id:
            self.answered.add((call.method, call.request_id))

    def by_key(self) -> dict[str, list[Call]]:
        """Each key's calls."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            found[call.key].append(call)
        return dict(found)
