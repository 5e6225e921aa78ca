"""Faults on demand: what goes wrong, for which requests, how often."""

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from local.fly import wire
from local.fly.errors import ApiError
from local.fly.wire import JsonObject

KINDS: Mapping[str, str] = {
    "slow_before": "hold the request `delay_ms`, then check the lease and commit, caller or not",
    "slow_after": "commit, then answer `delay_ms` later",
    "rate_limited": "answer 429",
    "server_error": "answer `status` (503) with `body` and commit nothing",
    "unavailable": "answer every API route 503, or close the connection (`answer: close`)",
    "answer_lost": "commit, then answer 408 or 504 or close the connection (`answer`)",
    "snapshot_dropped": "the next start of a suspended machine is a cold boot, files kept",
    "suspend_fails": "suspend answers 200, and the machine goes back to started",
    "suspend_stops": "suspend answers 200, and the machine ends stopped",
    "capacity": "create: 422 insufficient_capacity; start, update: 409 could not reserve",
    "machine_vanished": "the machine is gone: 404, in no list, its process killed",
    "stale_read": "what a create made is not found by get, list and wait for `delay_ms`",
    "exec_fails": "exec answers `status` (500), or 200 with `exit_code`",
}
"""Every kind, and what it does."""

ANSWERS = ("408", "504", "close")
_DEFAULT_STATUS = {"server_error": 503, "exec_fails": 500}
_UNLIMITED = ("unavailable",)
_DEFAULT_DELAY_MS = {"slow_before": 1000, "slow_after": 1000, "stale_read": 500}


class BadFault(ApiError):
    """A fault that cannot be set; says which field is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(400, f"fault.{name}: {problem}")
        self.name = name

    def body(self) -> dict[str, object]:
        """The error envelope, with the field's name for machines."""
        return super().body() | {"field": self.name}


@dataclass(frozen=True)
class Occasion:
    """What is happening when a fault may fire."""

    action: str
    app: str = ""
    machine: str = ""
    route: str = ""


@dataclass(frozen=True)
class Match:
    """Which occasions a fault is for; what is left empty matches everything."""

    action: str = ""
    app: str = ""
    machine: str = ""
    route: str = ""

    def fits(self, occasion: Occasion) -> bool:
        """Whether nothing that is asked for differs."""
        return (
            self.action in ("", occasion.action)
            and self.app in ("", occasion.app)
            and self.machine in ("", occasion.machine)
            and (not self.route or self.route in (occasion.route, occasion.route.split(" ")[-1]))
        )


@dataclass
class Fault:
    """One fault that was set, and how often it has fired."""

    id: str
    kind: str
    match: Match
    times: int | None
    """How often it fires at most; None until it is deleted."""
    probability: float
    seed: int
    delay_ms: int
    for_ms: int | None
    """How long after it was set it stays active; None for ever."""
    status: int
    body: str | None
    """Plain text in place of the JSON error, as an edge proxy answers."""
    answer: str
    exit_code: int | None
    set_at: float = field(default_factory=time.monotonic)
    fired: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def active(self, now: float) -> bool:
        """Whether it may still fire."""
        spent = self.times is not None and self.fired >= self.times
        over = self.for_ms is not None and now >= self.set_at + self.for_ms / 1000
        return not spent and not over

    def rolls(self) -> bool:
        """Throw the dice of this fault: the same seed gives the same row of throws."""
        return self.probability >= 1 or self._dice.random() < self.probability

    def to_json(self, now: float) -> JsonObject:
        """As the admin endpoint shows it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "match": {k: v for k, v in vars(self.match).items() if v},
            "times": self.times,
            "probability": self.probability,
            "seed": self.seed,
            "delay_ms": self.delay_ms,
            "for_ms": self.for_ms,
            "status": self.status,
            "body": self.body,
            "answer": self.answer,
            "exit_code": self.exit_code,
            "fired": self.fired,
            "active": self.active(now),
        }


class Faults:
    """The faults that are set. An occasion fires the oldest that is active and fits."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._numbers = itertools.count(1)
        self._faults: dict[str, Fault] = {}

    def add(self, fields: Mapping[str, object]) -> Fault:
        """Set a fault from its JSON; `BadFault` names the field that is wrong."""
        fault = _parse(f"fault-{next(self._numbers)}", fields)
        fault.set_at = self._now()
        self._faults[fault.id] = fault
        return fault

    def remove(self, fault_id: str) -> bool:
        """Delete one; whether it was there."""
        return self._faults.pop(fault_id, None) is not None

    def clear(self) -> None:
        """Delete all."""
        self._faults.clear()

    def to_json(self) -> list[JsonObject]:
        """All that are set, spent ones too."""
        return [fault.to_json(self._now()) for fault in self._faults.values()]

    def fire(self, kind: str, occasion: Occasion) -> Fault | None:
        """The fault of this kind that strikes now, counted as fired; None when none does."""
        for fault in self._faults.values():
            if fault.kind != kind or not fault.match.fits(occasion):
                continue
            if fault.active(self._now()) and fault.rolls():
                fault.fired += 1
                return fault
        return None


def _parse(fault_id: str, fields: Mapping[str, object]) -> Fault:
    known = set(Fault.__dataclass_fields__) - {"id", "set_at", "fired"}
    for name in fields:
        if name not in known:
            raise BadFault(name, f"no such field; there are {', '.join(sorted(known))}")
    kind = _text(fields, "kind")
    if kind not in KINDS:
        raise BadFault("kind", f"must be one of {', '.join(KINDS)}")
    for_ms = _number(fields, "for_ms", 1)
    answer = _text(fields, "answer") or ("408" if kind == "answer_lost" else "")
    if answer and answer not in ANSWERS:
        raise BadFault("answer", f"must be one of {', '.join(ANSWERS)}")
    status = _status(fields)
    delay_ms = _number(fields, "delay_ms", 0)
    return Fault(
        id=fault_id,
        kind=kind,
        match=_match(fields),
        times=_times(fields, kind, for_ms),
        probability=_probability(fields),
        seed=_number(fields, "seed", 0) or 0,
        delay_ms=_DEFAULT_DELAY_MS.get(kind, 0) if delay_ms is None else delay_ms,
        for_ms=for_ms,
        status=_DEFAULT_STATUS.get(kind, 503) if status is None else status,
        body=_text(fields, "body") or None,
        answer=answer,
        exit_code=_number(fields, "exit_code", 0),
    )


def _match(fields: Mapping[str, object]) -> Match:
    try:
        given = wire.texts(fields, "match")
    except ApiError as error:
        raise BadFault("match", "must be an object of strings") from error
    for name in given:
        if name not in Match.__dataclass_fields__:
            problem = f"no such field; there are {', '.join(Match.__dataclass_fields__)}"
            raise BadFault(f"match.{name}", problem)
    return Match(**given)


def _times(fields: Mapping[str, object], kind: str, for_ms: int | None) -> int | None:
    """Once, unless `times` says otherwise or the fault is one of duration."""
    if "times" in fields:
        return _number(fields, "times", 1)
    return None if for_ms is not None or kind in _UNLIMITED else 1


def _probability(fields: Mapping[str, object]) -> float:
    value = fields.get("probability", 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise BadFault("probability", "must be a number above 0 and at most 1")
    return float(value)


def _status(fields: Mapping[str, object]) -> int | None:
    status = _number(fields, "status", 400)
    if status is not None and status > 599:
        raise BadFault("status", "must be an HTTP error, 400 to 599")
    return status


def _number(fields: Mapping[str, object], name: str, least: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadFault(name, f"must be a whole number of {least} or more")
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise BadFault(name, "must be a string")
    return value or ""
