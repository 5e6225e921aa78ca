"""The plan of a start whose spec differs from the container's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from session_service.domain import plans
from session_service.domain.ladder import BEST_OF, decide
from session_service.domain.plans import Refusal
from session_service.domain.policy import OnFingerprintChange
from session_service.domain.session import Continuity, PauseDepth, Rung
from session_service.domain.spec import Carrier, Change, change
from session_service.domain.states import State
from session_service.domain.wish import Wish
from tests.unit.test_checkpoint import checkpoint
from tests.unit.test_ladder import NOW, POLICY, container, record

RECREATE = replace(POLICY, on_fingerprint_change=OnFingerprintChange.RECREATE_KEEPING_FILES)
HOOK, OTHER = {"http_path": "/state"}, {"http_path": "/other"}
GONE = container(destroy_time=NOW, wanted=False)
SAVED = [checkpoint(1)]


@pytest.mark.parametrize(
    ("before", "wanted", "volume", "hook"),
    [
        ({}, {}, False, False),
        ({"state_hook": HOOK}, {"state_hook": HOOK}, False, True),
        ({"state_hook": HOOK}, {"state_hook": OTHER}, False, False),
        ({"state_hook": HOOK}, {}, False, False),
        ({}, {"state_hook": HOOK}, False, False),
        ({"mounts": [1]}, {"mounts": [1], "state_hook": HOOK}, True, False),
        ({"mounts": [1], "state_hook": HOOK}, {"mounts": [2], "state_hook": HOOK}, False, True),
    ],
)
def test_the_shared_carriers_of_two_specs(
    before: dict[str, Any], wanted: dict[str, Any], volume: bool, hook: bool
) -> None:
    """A volume that both mount, or a hook that both declare, can carry state over."""
    found = change({"image": "a", **before}, {"image": "b", **wanted})
    assert found == Change(("image",), volume, hook)
    assert change({"image": "a", **before}, {"image": "a", **wanted}) is None


@pytest.mark.parametrize(
    ("volume", "hook", "gone", "saved", "by", "rungs"),
    [
        (True, False, False, False, Carrier.VOLUME, (Rung.CREATE,)),
        (True, True, False, True, Carrier.VOLUME, (Rung.CREATE,)),
        (True, True, True, True, Carrier.CHECKPOINT, (Rung.RESTORE, Rung.CREATE)),
        (True, True, True, False, Carrier.VOLUME, (Rung.CREATE,)),
        (True, False, True, True, Carrier.VOLUME, (Rung.CREATE,)),
        (False, True, False, False, Carrier.CHECKPOINT, (Rung.RESTORE,)),
        (False, True, True, True, Carrier.CHECKPOINT, (Rung.RESTORE, Rung.CREATE)),
        (False, True, True, False, Carrier.CHECKPOINT, (Rung.CREATE,)),
    ],
)
def test_the_carrier_of_the_kept_state(
    volume: bool, hook: bool, gone: bool, saved: bool, by: Carrier, rungs: tuple[Rung, ...]
) -> None:
    """The volume, unless the session is paused to a checkpoint that the new spec can restore."""
    where = GONE if gone else container()
    seen = record(where, state=State.PAUSED, pause_depth=PauseDepth.CHECKPOINT if gone else None)
    found = Change(("image",), volume, hook)
    plan = decide(Wish(), RECREATE, seen, change=found, checkpoints=SAVED if saved else [])
    assert isinstance(plan, plans.TryRungs)
    assert (plan.recreate, plan.rungs) == (by, rungs)


def test_a_start_recreates_only_with_a_carrier_and_enough_continuity() -> None:
    """For all facts: never less continuity than was asked for, and never without a carrier."""
    flags = (False, True)
    wanted = (None, *Continuity)
    for where, volume, hook, saved, least in product(
        (container(), GONE), flags, flags, flags, wanted
    ):
        seen = record(where, state=State.PAUSED, pause_depth=PauseDepth.SUSPENDED)
        found = Change(("env",), volume, hook)
        wish = Wish(min_continuity=least)
        plan = decide(wish, RECREATE, seen, change=found, checkpoints=SAVED if saved else [])
        if not (volume or hook):
            assert isinstance(plan, plans.Refuse)
            assert plan.refusal is Refusal.FINGERPRINT_CHANGED
        elif isinstance(plan, plans.Refuse):
            assert plan.refusal is Refusal.CONTINUITY_UNAVAILABLE
            assert least is not None
        else:
            assert isinstance(plan, plans.TryRungs)
            on_volume = plan.recreate is Carrier.VOLUME
            most = Continuity.FILESYSTEM if on_volume else BEST_OF[plan.rungs[0]]
            assert least is None or least <= most
