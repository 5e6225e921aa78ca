"""The effective policy: never above any cap, and each value with the source that decided it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain.policy import (
    FREE,
    NAMES,
    NOTHING,
    PAID,
    TIERS,
    LiveQuota,
    OnFingerprintChange,
    Persistence,
    Policy,
    Setting,
    Source,
    Stop,
    Tier,
    follow,
    less,
    live_quota,
    tier_of,
)
from session_service.domain.session import Continuity

spans = st.integers(0, 10**7).map(lambda tenths: timedelta(seconds=tenths / 10))
VALUES: dict[str, st.SearchStrategy[Any]] = {  # Any: fields of every type
    "persistence": st.sampled_from(Persistence),
    "idle_timeout": spans,
    "deepen_after": spans,
    "expire_after": spans,
    "grace_period": spans,
    "max_lifetime": spans,
    "min_continuity": st.sampled_from(Continuity),
    "recover_at_once": st.booleans(),
    "checkpoint_on_stop": st.booleans(),
    "keep_checkpoints": st.integers(0, 1000),
    "on_fingerprint_change": st.sampled_from(OnFingerprintChange),
    "checkpoint_after": st.just(timedelta(0)) | spans,
    "checkpoint_every": st.just(timedelta(0)) | spans,
}
OPTIONAL = ("max_lifetime", "min_continuity")
whole = st.builds(
    Policy,
    **{name: st.none() | values if name in OPTIONAL else values for name, values in VALUES.items()},
)
some = st.builds(Setting, **{name: st.none() | values for name, values in VALUES.items()})
tiers = st.sampled_from(list(TIERS.values())) | st.builds(Tier, st.just("made up"), some)


def test_every_field_is_in_every_table() -> None:
    """A new field needs a form, a size, a setting and a strategy here."""
    assert set(NAMES) == set(VALUES) == set(policies.FORMS) == set(policies.SIZES)
    assert {field.name for field in fields(Setting)} == set(NAMES)


@given(whole, tiers, some, some)
def test_no_value_is_above_any_cap(
    default: Policy, tier: Tier, project: Setting, request: Setting
) -> None:
    """At most the tier's cap, the project's value (or else the default) and the request's."""
    policy = policies.effective(default, tier, project, request).policy
    for name in NAMES:
        value = getattr(policy, name)
        own = getattr(project, name)
        base = getattr(default, name) if own is None else own
        assert not less(name, base, value)
        cap = getattr(tier.caps, name)
        assert cap is None or not less(name, cap, value)
        asked = getattr(request, name)
        assert asked is None or not less(name, asked, value)


@given(whole, tiers, some, some)
def test_each_value_has_the_source_that_decided_it(
    default: Policy, tier: Tier, project: Setting, request: Setting
) -> None:
    """The source has this very value, and is the last one that lowered it."""
    made = policies.effective(default, tier, project, request)
    has = {
        Source.DEFAULT: default,
        Source.TIER: tier.caps,
        Source.PROJECT: project,
        Source.REQUEST: request,
    }
    for name in NAMES:
        source = made.sources.get(name, Source.DEFAULT)
        assert getattr(has[source], name) == getattr(made.policy, name)
        if source is Source.DEFAULT:
            assert getattr(project, name) is None
        if source is Source.REQUEST:
            without = policies.effective(default, tier, project, NOTHING).policy
            assert less(name, getattr(made.policy, name), getattr(without, name))


@given(whole, tiers, some, some)
def test_the_effective_policy_is_idempotent(
    default: Policy, tier: Tier, project: Setting, request: Setting
) -> None:
    """Idempotent: used as the default under the same caps, it stays as it is."""
    made = policies.effective(default, tier, project, request).policy
    assert policies.effective(made, tier, NOTHING, request).policy == made


@given(whole, tiers, some, some)
def test_a_policy_is_read_from_its_row_as_written(
    default: Policy, tier: Tier, project: Setting, request: Setting
) -> None:
    """With sources, the base and the version; and as a plain policy where only that is needed."""
    made = policies.effective(default, tier, project, request)
    made = replace(
        made, sources={**made.sources, "spec": Source.PROJECT}, base="b", version="v", stale=True
    )
    raw = policies.dump_in_force(made)
    assert policies.load_in_force(raw) == made
    assert policies.load(raw) == made.policy


def test_rows_of_earlier_and_of_later_versions_can_be_read() -> None:
    """A missing field has the default; an unknown field is ignored."""
    early = {
        "persistence": "REUSE",
        "idle_timeout": 60.0,
        "deepen_after": 60.0,
        "grace_period": 60.0,
        "min_continuity": None,
    }
    read = policies.load_in_force(json.dumps(early))
    assert read.policy == Policy(
        Persistence.REUSE,
        idle_timeout=timedelta(minutes=1),
        deepen_after=timedelta(minutes=1),
        grace_period=timedelta(minutes=1),
    )
    assert (read.sources, read.base, read.stale) == ({}, "", False)
    late = {**json.loads(policies.dump_in_force(read)), "of_tomorrow": 1}
    assert policies.load_in_force(json.dumps(late)) == read
    assert policies.load("{}") == policies.DEFAULT


@given(whole, tiers, some, some, some)
def test_a_change_never_ends_what_the_new_policy_would_keep(
    default: Policy, tier: Tier, before: Setting, after: Setting, request: Setting
) -> None:
    """Durations apply at once; a lower persistence waits for the next start or stop."""
    row = policies.effective(default, tier, before, request)
    target = policies.effective(default, tier, after, request)
    followed = follow(row, target)
    for name in policies.AT_ONCE:
        assert getattr(followed.policy, name) == getattr(target.policy, name)
    kept = followed.policy.persistence
    assert not less("persistence", kept, row.policy.persistence)
    assert not less("persistence", kept, target.policy.persistence)
    least = followed.policy.min_continuity or 0
    assert least == max(row.policy.min_continuity or 0, target.policy.min_continuity or 0)
    assert followed.stale == (followed.policy != target.policy)
    assert follow(followed, target) == followed


@pytest.mark.parametrize(
    ("persistence", "expected"),
    [
        (Persistence.EPHEMERAL, Stop.END),
        (Persistence.REUSE, Stop.END),
        (Persistence.HIBERNATE, Stop.PAUSE),
        (Persistence.ASK, Stop.PAUSE),
        (Persistence.CHECKPOINT, Stop.CHECKPOINT),
    ],
)
def test_the_meaning_of_a_stop_by_persistence(persistence: Persistence, expected: Stop) -> None:
    assert policies.what_stop_means(Policy(persistence)) is expected


def test_free_caps_to_ephemeral_paid_to_nothing_and_an_unknown_tier_as_free() -> None:
    """After a rollback of the code an unknown tier must not give all rights."""
    asked = Setting(persistence=Persistence.CHECKPOINT, idle_timeout=timedelta(days=9))
    free = policies.effective(policies.DEFAULT, FREE, asked, NOTHING)
    assert free.policy.persistence is Persistence.EPHEMERAL
    assert free.sources["idle_timeout"] is Source.TIER
    paid = policies.effective(policies.DEFAULT, PAID, asked, NOTHING)
    assert paid.policy.persistence is Persistence.CHECKPOINT
    assert paid.policy.idle_timeout == timedelta(days=9)
    assert tier_of("of tomorrow") is FREE


def test_a_request_asks_for_less_of_a_persistence_only() -> None:
    """EPHEMERAL is less than HIBERNATE. ASK keeps as much, so the project's value is kept."""

    def in_force(project: Persistence, request: Persistence) -> Persistence:
        made = policies.effective(
            policies.DEFAULT, PAID, Setting(persistence=project), Setting(persistence=request)
        )
        return made.policy.persistence

    assert in_force(Persistence.HIBERNATE, Persistence.EPHEMERAL) is Persistence.EPHEMERAL
    assert in_force(Persistence.EPHEMERAL, Persistence.HIBERNATE) is Persistence.EPHEMERAL
    assert in_force(Persistence.ASK, Persistence.HIBERNATE) is Persistence.ASK
    assert in_force(Persistence.CHECKPOINT, Persistence.HIBERNATE) is Persistence.HIBERNATE


@pytest.mark.parametrize(
    ("default", "tier", "project", "request_", "expected", "source"),
    [
        (0, PAID, None, None, 0, None),
        (600, PAID, None, None, 600, None),
        (600, PAID, 60, None, 60, Source.PROJECT),
        (600, PAID, 0, None, 0, Source.PROJECT),
        # A longer interval is less, never is least, and a shorter interval is more.
        (0, PAID, 60, 600, 600, Source.REQUEST),
        (0, PAID, 60, 0, 0, Source.REQUEST),
        (0, PAID, 60, 6, 60, Source.PROJECT),
        (0, PAID, 0, 60, 0, Source.PROJECT),
        (0, PAID, None, 60, 0, None),
        (600, FREE, 60, 600, 0, Source.TIER),
    ],
)
def test_the_effective_interval_of_checkpoints(
    default: int,
    tier: Tier,
    project: int | None,
    request_: int | None,
    expected: int,
    source: Source | None,
) -> None:
    def setting(seconds: int | None) -> Setting:
        return NOTHING if seconds is None else Setting(checkpoint_every=timedelta(seconds=seconds))

    made = policies.effective(
        Policy(checkpoint_every=timedelta(seconds=default)),
        tier,
        setting(project),
        setting(request_),
    )
    assert made.policy.checkpoint_every == timedelta(seconds=expected)
    assert made.sources.get("checkpoint_every") is source


def test_a_flag_can_be_asked_to_be_off() -> None:
    """False is less than true, and differs from unset."""
    project = Setting(recover_at_once=True, checkpoint_on_stop=True)
    off = Setting(recover_at_once=False, checkpoint_on_stop=False)
    made = policies.effective(policies.DEFAULT, PAID, project, off)
    assert not (made.policy.recover_at_once or made.policy.checkpoint_on_stop)
    assert made.sources["recover_at_once"] is Source.REQUEST
    unchanged = policies.effective(policies.DEFAULT, PAID, project, NOTHING)
    assert unchanged.policy.recover_at_once
    assert unchanged.policy.checkpoint_on_stop


def test_every_tier_keeps_a_checkpoint() -> None:
    """A cap of 0 could not be kept: the newest checkpoint is never deleted."""
    for tier in TIERS.values():
        assert tier.caps.keep_checkpoints is None or tier.caps.keep_checkpoints >= 1


@pytest.mark.parametrize(
    ("operator", "tier", "most", "by"),
    [
        (0, PAID, None, None),
        (7, PAID, 7, None),
        (0, FREE, 10, "free"),
        (7, FREE, 7, None),
        (10, FREE, 10, None),
        (11, FREE, 10, "free"),
        (5, Tier("none at all", live_sessions=0), 0, "none at all"),
    ],
)
def test_the_smaller_quota_of_live_sessions_holds(
    operator: int, tier: Tier, most: int | None, by: str | None
) -> None:
    """The operator's 0 means no limit; a tier's 0 means none."""
    assert live_quota(operator, tier) == (None if most is None else LiveQuota(most, by))


def test_old_fingerprints_are_unchanged() -> None:
    """A part that was added later counts only if it is set."""
    spec = {"image": "i", "env": {"A": "secret"}, "region": "", "command": ["x"]}
    assert specs.fingerprint(spec) == (
        # From rows written before secrets had a generation.
        "f7402f9d739cbfc85c7703b401d7dab6bc1bac8162e8c507f19cb2fd072b6a80"
    )
    unset = {**spec, "secret_generation": "", "command": ["y"]}
    assert specs.fingerprint(unset) == specs.fingerprint(spec)
    rotated = {**spec, "secret_generation": "2"}
    assert specs.fingerprint(rotated) != specs.fingerprint(spec)


@given(
    st.dictionaries(st.sampled_from(specs.PARTS), st.sampled_from(["a", "b", ""])),
    st.dictionaries(st.sampled_from(specs.PARTS), st.sampled_from(["a", "b", ""])),
)
def test_parts_differ_just_where_the_fingerprints_do(
    one: dict[str, str], other: dict[str, str]
) -> None:
    """The parts are named without their values."""
    parts = specs.differing(one, other)
    same = specs.fingerprint(one) == specs.fingerprint(other)
    assert same == (parts == ())
    assert set(parts) <= set(specs.PARTS)


@pytest.mark.parametrize(
    ("default", "project", "request_", "expected", "source"),
    [
        (0, None, None, 0, Source.DEFAULT),
        (0, None, 60, 60, Source.REQUEST),
        (60, 0, None, 0, Source.PROJECT),
        (60, None, 0, 60, Source.DEFAULT),
        (60, None, 90, 60, Source.DEFAULT),
        (60, 90, 30, 30, Source.REQUEST),
    ],
)
def test_keeping_a_paused_container_forever_is_the_most(
    default: int, project: int | None, request_: int | None, expected: int, source: Source
) -> None:
    """A request can only shorten the time. A project can choose never over a default."""

    def setting(seconds: int | None) -> Setting:
        return NOTHING if seconds is None else Setting(checkpoint_after=timedelta(seconds=seconds))

    made = policies.effective(
        Policy(checkpoint_after=timedelta(seconds=default)),
        TIERS["paid"],
        setting(project),
        setting(request_),
    )
    assert made.policy.checkpoint_after == timedelta(seconds=expected)
    assert made.sources.get("checkpoint_after", Source.DEFAULT) is source
