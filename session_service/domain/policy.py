"""Policies: what a project can set, the tiers that limit it, and the policy in force for a session.

`effective` derives the policy in force from the operator's default, the project's own policy, the
tenant's tier and the request. The session's row also has the source of each value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from session_service.domain.session import Continuity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Persistence(StrEnum):
    """How much of a session a project keeps after a stop."""

    EPHEMERAL = "EPHEMERAL"
    REUSE = "REUSE"
    HIBERNATE = "HIBERNATE"
    CHECKPOINT = "CHECKPOINT"
    ASK = "ASK"


class OnFingerprintChange(StrEnum):
    """What to do when a start asks for another spec than the container was created from."""

    REFUSE = "REFUSE"
    RECREATE_KEEPING_FILES = "RECREATE_KEEPING_FILES"
    ALLOW = "ALLOW"


class Stop(StrEnum):
    """What happens to a session at a stop, and when it is idle."""

    END = "END"
    """Nothing is kept: the session ends, with its grace period."""
    PAUSE = "PAUSE"
    """Its container is suspended."""
    CHECKPOINT = "CHECKPOINT"
    """Its state is saved and its container destroyed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How sessions of a project are kept. A project without settings is HIBERNATE."""

    persistence: Persistence = Persistence.HIBERNATE
    idle_timeout: timedelta = timedelta(minutes=30)
    """After this time without activity a session is paused."""
    deepen_after: timedelta = timedelta(hours=24)
    """After this time suspended it is stopped."""
    expire_after: timedelta = timedelta(days=30)
    """After this time paused at its greatest depth it is ended."""
    checkpoint_after: timedelta = timedelta(0)
    """After this time paused with a container, its state is saved and the container destroyed. Only
    if the spec has a state hook and `min_continuity` allows a start from a checkpoint; 0: never."""
    grace_period: timedelta = timedelta(minutes=10)
    """How long an ended session can be brought back."""
    min_continuity: Continuity | None = None
    """The least continuity that a start may give for an existing session; None: any."""
    max_lifetime: timedelta | None = None
    """A session older than this is shown as too old; nothing else happens to it. None: never."""
    recover_at_once: bool = False
    """Whether a lost container is replaced at once; if not, at the next start."""
    checkpoint_on_stop: bool = False
    """Whether the state is saved at every stop."""
    keep_checkpoints: int = 5
    """How many checkpoints of a key are kept, not counting pinned ones; at least 1."""
    on_fingerprint_change: OnFingerprintChange = OnFingerprintChange.ALLOW
    """What to do when the spec changes."""
    checkpoint_every: timedelta = timedelta(0)
    """The interval at which the state of a running session is saved; 0: never."""


#: The policy in force if nothing else was set.
DEFAULT = Policy()


def what_stop_means(policy: Policy) -> Stop:
    """What StopSession does to a session under this policy, and the due pass to an idle one.

    No other code maps a persistence to this.
    """
    match policy.persistence:
        case Persistence.EPHEMERAL | Persistence.REUSE:
            return Stop.END
        case Persistence.CHECKPOINT:
            return Stop.CHECKPOINT
        case Persistence.HIBERNATE | Persistence.ASK:
            return Stop.PAUSE


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is written as JSON and read back. Any: each form has its own type."""

    write: Callable[[Any], object]
    read: Callable[[Any], Any]


def _optional(form: Form) -> Form:
    return Form(
        lambda value: None if value is None else form.write(value),
        lambda raw: None if raw is None else form.read(raw),
    )


_SPAN = Form(timedelta.total_seconds, lambda seconds: timedelta(seconds=seconds))
_FLAG = Form(bool, bool)
#: The form of each field of a Policy, by name.
FORMS: Mapping[str, Form] = {
    "persistence": Form(str, Persistence),
    "idle_timeout": _SPAN,
    "deepen_after": _SPAN,
    "expire_after": _SPAN,
    "checkpoint_after": _SPAN,
    "grace_period": _SPAN,
    "min_continuity": _optional(Form(int, Continuity)),
    "max_lifetime": _optional(_SPAN),
    "recover_at_once": _FLAG,
    "checkpoint_on_stop": _FLAG,
    "keep_checkpoints": Form(int, int),
    "on_fingerprint_change": Form(str, OnFingerprintChange),
    "checkpoint_every": _SPAN,
}
NAMES = tuple(field.name for field in fields(Policy))


def as_json(policy: Policy) -> dict[str, object]:
    """The policy as the row has it, with durations in seconds."""
    return {name: form.write(getattr(policy, name)) for name, form in FORMS.items()}


def from_json(row: Mapping[str, Any]) -> Policy:
    """Read what `as_json` wrote. Any: JSON.

    Fields that a row of an earlier version lacks get their defaults; fields that a later version
    added are ignored.
    """
    return Policy(**{name: form.read(row[name]) for name, form in FORMS.items() if name in row})


def dump(policy: Policy) -> str:
    """The policy as a JSON object."""
    return json.dumps(as_json(policy))


@lru_cache(maxsize=1024)
def load(raw: str) -> Policy:
    """The policy of a session's row. Cached: many sessions of a project have the same text."""
    return from_json(json.loads(raw))


class Source(StrEnum):
    """Where a value of the policy in force came from."""

    DEFAULT = "DEFAULT"
    TIER = "TIER"
    PROJECT = "PROJECT"
    REQUEST = "REQUEST"


@dataclass(frozen=True, slots=True)
class Setting:
    """A partial policy; None: the value is not set."""

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
        """The values that are set, in the row's form of a Policy."""
        pairs = ((name, getattr(self, name)) for name in NAMES)
        return {name: FORMS[name].write(value) for name, value in pairs if value is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Setting:
        """Read what `as_json` wrote. Any: JSON."""
        return cls(**{name: FORMS[name].read(row[name]) for name in NAMES if name in row})


NOTHING = Setting()

#: The order of persistences: a higher number keeps more. ASK keeps as much as HIBERNATE.
KEEPS: Mapping[Persistence, int] = {
    Persistence.EPHEMERAL: 0,
    Persistence.REUSE: 1,
    Persistence.HIBERNATE: 2,
    Persistence.ASK: 2,
    Persistence.CHECKPOINT: 3,
}
#: The order of reactions to another spec: failing does least, recreating a container does most.
DOES: Mapping[OnFingerprintChange, int] = {
    OnFingerprintChange.REFUSE: 0,
    OnFingerprintChange.ALLOW: 1,
    OnFingerprintChange.RECREATE_KEEPING_FILES: 2,
}


def _size(name: str) -> Callable[[Any], Any]:
    """The function from a value of this field to its size. Any: fields have different types."""
    match name:
        case "persistence":
            return KEEPS.__getitem__
        case "on_fingerprint_change":
            return DOES.__getitem__
        case "max_lifetime":
            return lambda span: float("inf") if span is None else span.total_seconds()
        case "checkpoint_after":
            # The time that an unused container is kept, which costs. 0 keeps it for ever, and so is
            # the most.
            return lambda span: span.total_seconds() or float("inf")
        case "checkpoint_every":
            # A longer interval saves less often, so it is less; 0, never, is the least.
            return lambda span: -span.total_seconds() if span else float("-inf")
        case "min_continuity":
            # A higher level allows fewer outcomes, so it is less.
            return lambda level: -(level or 0)
        case _:
            return lambda value: value


SIZES: Mapping[str, Callable[[Any], Any]] = {name: _size(name) for name in NAMES}


def less(name: str, one: object, other: object) -> bool:
    """Whether `one` is less than `other` in this field: it keeps, lasts or allows less."""
    return bool(SIZES[name](one) < SIZES[name](other))


@dataclass(frozen=True, slots=True)
class Tier:
    """The limits of a tenant; None: no limit."""

    name: str
    caps: Setting = NOTHING
    live_sessions: int | None = None
    """The most live sessions, paused ones included."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy in force for a session, as its row keeps it."""

    policy: Policy
    sources: Mapping[str, Source] = field(default_factory=dict)
    """The source of each value; a value without one is the operator's default. The name "spec" has
    the source of the container spec, if it is known."""
    asked: Setting = NOTHING
    """The policy values that the session's start asked for; they stay in force for later starts."""
    base: str = ""
    """Identifies the operator's defaults that it was derived from."""
    version: str = ""
    """Identifies the tier and the version of the project's policy that it was derived from."""
    stale: bool = False
    """Whether a value has changed that applies from the session's next start or stop on."""


def effective(default: Policy, tier: Tier, project: Setting, request: Setting) -> InForce:
    """The policy in force: the project's value or else the default's, for each field; at most the
    tier's cap; and less if the request asks for less.
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


#: The fields that apply to live sessions at once; others apply from the next start or stop on.
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
    """The policy of a live session's row, when a start would now get the policy `target`.

    A change must not end a session that the new policy would keep. So a persistence that keeps more
    applies at once, and so does a higher `min_continuity`: otherwise the new spans could discard
    what it protects.
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


def dump_in_force(value: InForce) -> str:
    """The policy in force as the session's row has it: a policy's JSON object with more fields."""
    row: dict[str, object] = as_json(value.policy)
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
def load_in_force(raw: str) -> InForce:
    """Read what `dump_in_force` wrote; fields that an earlier version did not have get defaults."""
    row = json.loads(raw)
    return InForce(
        from_json(row),
        {name: Source(source) for name, source in row.get("sources", {}).items()},
        Setting.from_json(row.get("asked", {})),
        row.get("base", ""),
        row.get("version", ""),
        row.get("stale", False),
    )


FREE = Tier(
    "free",
    Setting(
        persistence=Persistence.EPHEMERAL,
        idle_timeout=timedelta(minutes=30),
        # A session that was undeleted within its grace period is not paused for long either.
        deepen_after=timedelta(minutes=10),
        expire_after=timedelta(minutes=10),
        grace_period=timedelta(minutes=10),
        recover_at_once=False,
        checkpoint_on_stop=False,
        checkpoint_every=timedelta(0),
        # The minimum: a checkpoint that a user asks for is kept until a newer one exists.
        keep_checkpoints=1,
    ),
    # Enough for a few users who try Roost out.
    live_sessions=10,
)
PAID = Tier("paid")

#: Every tier, by its name.
TIERS: Mapping[str, Tier] = {tier.name: tier for tier in (FREE, PAID)}


def tier_of(name: str) -> Tier:
    """The tier of this name; the tier with the lowest limits if this version does not know it."""
    return TIERS.get(name, FREE)


@dataclass(frozen=True, slots=True)
class LiveQuota:
    """The most live sessions that a tenant may have, and the source of that limit."""

    most: int
    tier: str | None
    """The name of the tier that sets the limit; None: the operator does."""


def live_quota(operator: int, tier: Tier) -> LiveQuota | None:
    """The smaller of the operator's limit for every tenant (0: no limit) and the tier's; None if
    there is neither.
    """
    if tier.live_sessions is None:
        return LiveQuota(operator, None) if operator else None
    if operator and operator <= tier.live_sessions:
        return LiveQuota(operator, None)
    return LiveQuota(tier.live_sessions, tier.name)


class Preference(StrEnum):
    """A user's preference, which decides in place of a question."""

    AUTO_RESUME = "AUTO_RESUME"
    ALWAYS_FRESH = "ALWAYS_FRESH"
    ASK = "ASK"


def deciding(policy: Policy, preference: Preference) -> Policy:
    """The policy of a start that names no mode. If the policy would ask the user and the user has a
    preference, the preference decides.
    """
    if policy.persistence is not Persistence.ASK:
        return policy
    match preference:
        case Preference.AUTO_RESUME:
            return replace(policy, persistence=Persistence.HIBERNATE)
        case Preference.ALWAYS_FRESH:
            return replace(policy, persistence=Persistence.EPHEMERAL)
        case Preference.ASK:
            return policy
