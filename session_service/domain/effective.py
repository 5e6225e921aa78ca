"""The policy in force: made of the operator's default, the project's own, the tenant's tier and the
request, by one pure function; and its form in the session's row, with where each value came from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from session_service.domain import policy as policies
from session_service.domain.policy import FORMS, NAMES, OnFingerprintChange, Persistence, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from session_service.domain.session import Continuity


class Source(StrEnum):
    """Where a value came from."""

    DEFAULT = "DEFAULT"
    TIER = "TIER"
    PROJECT = "PROJECT"
    REQUEST = "REQUEST"


@dataclass(frozen=True, slots=True)
class Setting:
    """Some values of a policy; None is not set."""

    persistence: Persistence | None = None
    idle_timeout: timedelta | None = None
    deepen_after: timedelta | None = None
    expire_after: timedelta | None = None
    checkpoint_after: timedelta | None = None
    grace_period: timedelta | None = None
    min_continuity: Continuity | None = None
    max_lifetime: timedelta | None = None
    recover_at_once: bool | None = None
    checkpoint_on_stop: bool | None = None
    keep_checkpoints: int | None = None
    on_fingerprint_change: OnFingerprintChange | None = None
    checkpoint_every: timedelta | None = None

    def as_json(self) -> dict[str, object]:
        """What is set, in the form that a Policy has in the row."""
        pairs = ((name, getattr(self, name)) for name in NAMES)
        return {name: FORMS[name].write(value) for name, value in pairs if value is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Setting:
        """Read back what `as_json` wrote. Any: JSON."""
        return cls(**{name: FORMS[name].read(row[name]) for name in NAMES if name in row})


NOTHING = Setting()

#: Keeping more is more; ASK keeps what HIBERNATE does, and asks about it.
KEEPS: Mapping[Persistence, int] = {
    Persistence.EPHEMERAL: 0,
    Persistence.REUSE: 1,
    Persistence.HIBERNATE: 2,
    Persistence.ASK: 2,
    Persistence.CHECKPOINT: 3,
}
#: Refusing does least, going on as it is less than creating a container.
DOES: Mapping[OnFingerprintChange, int] = {
    OnFingerprintChange.REFUSE: 0,
    OnFingerprintChange.ALLOW: 1,
    OnFingerprintChange.RECREATE_KEEPING_FILES: 2,
}


def _size(name: str) -> Callable[[Any], Any]:
    """How much a value of this field is, to be compared. Any: fields of every type."""
    match name:
        case "persistence":
            return KEEPS.__getitem__
        case "on_fingerprint_change":
            return DOES.__getitem__
        case "max_lifetime":
            return lambda span: float("inf") if span is None else span.total_seconds()
        case "checkpoint_after":
            # It is how long a container is kept that nobody uses, which is what costs: never to let
            # go of it, which is 0, keeps most.
            return lambda span: span.total_seconds() or float("inf")
        case "checkpoint_every":
            # Saving more rarely does less; 0 is never, and so the least.
            return lambda span: -span.total_seconds() if span else float("-inf")
        case "min_continuity":
            # Asking for more to survive allows less to happen.
            return lambda level: -(level or 0)
        case _:
            return lambda value: value


SIZES: Mapping[str, Callable[[Any], Any]] = {name: _size(name) for name in NAMES}


def less(name: str, one: object, other: object) -> bool:
    """Whether `one` is less of this field than `other`: keeps less, lasts less, allows less."""
    return bool(SIZES[name](one) < SIZES[name](other))


@dataclass(frozen=True, slots=True)
class Tier:
    """What a tenant may have at most; None is no cap."""

    name: str
    caps: Setting = NOTHING
    live_sessions: int | None = None
    """The most live sessions, paused ones included."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy in force for a session, as its row keeps it."""

    policy: Policy
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Where each value came from; what is not named is the operator's default. "spec": where that
    of its containers came from, where that is known."""
    asked: Setting = NOTHING
    """What the start asked for that brought the session where it is; later ones keep to it."""
    base: str = ""
    """Which defaults of the operator it was made of."""
    version: str = ""
    """Which tier, and which version of the project's policy."""
    stale: bool = False
    """Whether something of it has changed that holds from the session's next start or stop on."""


def effective(default: Policy, tier: Tier, project: Setting, request: Setting) -> InForce:
    """What is in force: the project's own values, or else the default's, no more than the tier's
    caps, and less where the request asks for less.
    """
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for name in NAMES:
        value, source = getattr(default, name), Source.DEFAULT
        if (own := getattr(project, name)) is not None:
            value, source = own, Source.PROJECT
        for limit, limiter in ((tier.caps, Source.TIER), (request, Source.REQUEST)):
            cap = getattr(limit, name)
            if cap is not None and less(name, cap, value):
                value, source = cap, limiter
        values[name] = value
        if source is not Source.DEFAULT:
            sources[name] = source
    return InForce(Policy(**values), sources, request)


#: What holds for live sessions at once; everything else from their next start or stop on.
AT_ONCE = (
    "idle_timeout",
    "deepen_after",
    "expire_after",
    "checkpoint_after",
    "grace_period",
    "max_lifetime",
    "recover_at_once",
    "checkpoint_every",
)


def follow(row: InForce, target: InForce) -> InForce:
    """What a live session's row is to say once `target` is what a start would give it.

    Nothing ends by it that the new policy would keep: a persistence that keeps more holds at once,
    and so does a `min_continuity` that asks for more, which the spans must not undo.
    """
    names = list(AT_ONCE)
    if less("persistence", row.policy.persistence, target.policy.persistence):
        names.append("persistence")
    if less("min_continuity", target.policy.min_continuity, row.policy.min_continuity):
        names.append("min_continuity")
    values: dict[str, Any] = {name: getattr(target.policy, name) for name in names}
    sources = dict(row.sources)
    for name in names:
        sources.pop(name, None)
        if name in target.sources:
            sources[name] = target.sources[name]
    policy = replace(row.policy, **values)
    stale = policy != target.policy
    return InForce(policy, sources, row.asked, target.base, target.version, stale)


def dump(value: InForce) -> str:
    """Its form in the session's row: a policy's, and more beside it."""
    row: dict[str, object] = policies.as_json(value.policy)
    row["base"] = value.base
    row["version"] = value.version
    if value.sources:
        row["sources"] = dict(value.sources)
    if asked := value.asked.as_json():
        row["asked"] = asked
    if value.stale:
        row["stale"] = True
    return json.dumps(row)


@lru_cache(maxsize=1024)
def load(raw: str) -> InForce:
    """Read back what `dump` wrote, by this version or an earlier one, whose rows say less."""
    row = json.loads(raw)
    return InForce(
        policies.from_json(row),
        {name: Source(source) for name, source in row.get("sources", {}).items()},
        Setting.from_json(row.get("asked", {})),
        row.get("base", ""),
        row.get("version", ""),
        row.get("stale", False),
    )
