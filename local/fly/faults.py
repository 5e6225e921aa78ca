"""Injected faults: which kind, for which requests, how often."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local.fly import go_json
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject
from local.fly.settings import SettingError

KINDS: Mapping[str, str] = {
    "slow_before": "delay the request by `delay_ms`, then check the lease and commit",
    "slow_after": "commit, and answer `delay_ms` later",
    "rate_limited": "answer 429",
    "server_error": "answer `status` (503) with `body` and commit nothing",
    "unavailable": "answer every API request with 503, or close the connection (`answer: close`)",
    "answer_lost": "commit, then answer 408 or 504, or close the connection (`answer`)",
    "snapshot_dropped": "the next start of a suspended machine is a cold boot; its files are kept",
    "suspend_fails": "suspend answers 200, and the machine goes back to started",
    "suspend_stops": "suspend answers 200, and the machine ends stopped",
    "capacity": "create: 422 insufficient_capacity; start, update: 409 could not reserve",
    "machine_vanished": "the machine disappears: 404, in no list, its process killed",
    "stale_read": "get, list and wait do not find a created machine for `delay_ms`",
    "exec_fails": "exec answers `status` (500), or 200 with `exit_code`",
}
"""Every kind of fault, and its effect."""

ANSWERS = ("408", "504", "close")
_DEFAULT_STATUS = {"server_error": 503, "exec_fails": 500}
_UNLIMITED = ("unavailable",)
_DEFAULT_DELAY_MS = {"slow_before": 1000, "slow_after": 1000, "stale_read": 500}


class InvalidFault(ApiError):
    """A fault that cannot be set; names the invalid field."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(400, f"fault.{name}: {problem}")
        self.name = name

    def body(self) -> dict[str, object]:
        """The error envelope, with the name of the invalid field."""
        return super().body() | {"field": self.name}


@dataclass(frozen=True)
class FaultContext:
    """The request or job for which a fault may fire."""

    action: str
    app: str = ""
    machine: str = ""
    route: str = ""


@dataclass(frozen=True)
class Match:
    """Where a fault applies; an empty field matches everything."""

    action: str = ""
    app: str = ""
    machine: str = ""
    route: str = ""

    def fits(self, context: FaultContext) -> bool:
        """Whether every non-empty field equals the context's."""
        return (
            self.action in ("", context.action)
            and self.app in ("", context.app)
            and self.machine in ("", context.machine)
            and (not self.route or self.route in (context.route, context.route.split(" ")[-1]))
        )


@dataclass
class Fault:
    """One fault that was set, and how often it has fired."""

    id: str
    kind: str
    match: Match
    times: int | None
    """The largest number of firings; None is no limit."""
    probability: float
    seed: int
    delay_ms: int
    for_ms: int | None
    """Milliseconds after `set_at` during which it is active; None is no limit."""
    status: int
    body: str | None
    """Plain text to answer in place of the JSON error, as an edge proxy does."""
    answer: str
    exit_code: int | None
    set_at: float = field(default_factory=time.monotonic)
    fired: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._deleted = asyncio.Event()

    @property
    def deleted(self) -> bool:
        """Whether it was deleted, so that none of its delays goes on."""
        return self._deleted.is_set()

    def active(self, now: float) -> bool:
        """Whether it may still fire at the time `now` (monotonic seconds)."""
        spent = self.times is not None and self.fired >= self.times
        over = self.for_ms is not None and now >= self.set_at + self.for_ms / 1000
        return not spent and not over

    async def delay(self) -> None:
        """Wait for `delay_ms`, or until `end_delays`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._deleted.wait(), self.delay_ms / 1000)

    def end_delays(self) -> None:
        """End the delays that it has begun."""
        self._deleted.set()

    def roll(self) -> bool:
        """Draw whether it fires. The same seed gives the same sequence of results."""
        return self.probability >= 1 or self._dice.random() < self.probability

    def to_json(self, now: float) -> JsonObject:
        """Render it for `/_emulator/faults`."""
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
    """The faults that are set. Of those that match a context, the oldest active one fires."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._numbers = itertools.count(1)
        self._faults: dict[str, Fault] = {}

    def add(self, fields: Mapping[str, object]) -> Fault:
        """Set a fault from its JSON. Raises InvalidFault."""
        fault = _parse(f"fault-{next(self._numbers)}", fields)
        fault.set_at = self._now()
        self._faults[fault.id] = fault
        return fault

    def remove(self, fault_id: str) -> bool:
        """Delete one and end its delays; False when there is none of this id."""
        fault = self._faults.pop(fault_id, None)
        if fault is not None:
            fault.end_delays()
        return fault is not None

    def clear(self) -> None:
        """Delete all and end their delays."""
        for fault_id in list(self._faults):
            self.remove(fault_id)

    def to_json(self) -> list[JsonObject]:
        """All faults that are set, including those that will not fire again."""
        return [fault.to_json(self._now()) for fault in self._faults.values()]

    def fire(self, kind: str, context: FaultContext) -> Fault | None:
        """The fault of this kind that fires now, and count it; None when none fires."""
        for fault in self._faults.values():
            if fault.kind != kind or not fault.match.fits(context):
                continue
            if fault.active(self._now()) and fault.roll():
                fault.fired += 1
                return fault
        return None


def load_scenario(path: Path, faults: Faults) -> None:
    """Set the faults of a JSON file, in order. Raises SettingError for an unusable file."""
    try:
        rows: object = json.loads(path.read_text())
    except OSError as error:
        raise SettingError("scenario", f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingError("scenario", f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise SettingError("scenario", f"{path} must hold a list of faults")
    for number, row in enumerate(rows):
        try:
            faults.add(row if isinstance(row, dict) else {})
        except ApiError as error:
            raise SettingError("scenario", f"{path}: fault {number}: {error.text}") from error


def _parse(fault_id: str, fields: Mapping[str, object]) -> Fault:
    known = set(Fault.__dataclass_fields__) - {"id", "set_at", "fired"}
    for name in fields:
        if name not in known:
            raise InvalidFault(name, f"no such field; the fields are {', '.join(sorted(known))}")
    kind = _text(fields, "kind")
    if kind not in KINDS:
        raise InvalidFault("kind", f"must be one of {', '.join(KINDS)}")
    for_ms = _number(fields, "for_ms", 1)
    answer = _text(fields, "answer") or ("408" if kind == "answer_lost" else "")
    if answer and answer not in ANSWERS:
        raise InvalidFault("answer", f"must be one of {', '.join(ANSWERS)}")
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
        given = go_json.texts(fields, "match")
    except ApiError as error:
        raise InvalidFault("match", "must be an object of strings") from error
    for name in given:
        if name not in Match.__dataclass_fields__:
            problem = f"no such field; the fields are {', '.join(Match.__dataclass_fields__)}"
            raise InvalidFault(f"match.{name}", problem)
    return Match(**given)


def _times(fields: Mapping[str, object], kind: str, for_ms: int | None) -> int | None:
    """`times` if given; else no limit for faults with a duration, and once for the others."""
    if "times" in fields:
        return _number(fields, "times", 1)
    return None if for_ms is not None or kind in _UNLIMITED else 1


def _probability(fields: Mapping[str, object]) -> float:
    value = fields.get("probability", 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidFault("probability", "must be a number above 0 and at most 1")
    return float(value)


def _status(fields: Mapping[str, object]) -> int | None:
    status = _number(fields, "status", 400)
    if status is not None and status > 599:
        raise InvalidFault("status", "must be an HTTP error, 400 to 599")
    return status


def _number(fields: Mapping[str, object], name: str, least: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidFault(name, f"must be a whole number of {least} or more")
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidFault(name, "must be a string")
    return value or ""
