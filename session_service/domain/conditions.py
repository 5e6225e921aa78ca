"""Conditions: what is out of the ordinary about a session, and their form in its row."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from session_service.domain.session import Condition, ConditionType

if TYPE_CHECKING:
    from collections.abc import Iterable

#: One sentence for people per type; what to do about it included where something can be done.
SENTENCES = {
    ConditionType.PROVIDER_UNREACHABLE: (
        "The provider did not say how the container is; its preview answered, so it is used."
    ),
    ConditionType.SUSPEND_FAILED_STILL_RUNNING: (
        "The last pause failed and the container was found running; pause again, or stop it."
    ),
    ConditionType.MEMORY_LOST: "What was in memory is gone; files are kept.",
    ConditionType.CONTAINER_LOST: "The container was lost, with all that no checkpoint holds.",
    ConditionType.FINGERPRINT_CHANGED: (
        "The start asked for another spec than the container was created from; the container goes "
        "on with the old one. Start with mode FRESH to get the new one."
    ),
    ConditionType.CHECKPOINT_FAILED: (
        "Its state could not be saved; the container is kept, with all that is in it. "
        "Stop it again to try once more."
    ),
}


def condition(kind: ConditionType, now: datetime) -> Condition:
    """The condition of this type as it begins now."""
    return Condition(kind, SENTENCES[kind], now)


def changed(parts: Iterable[str], now: datetime) -> Condition:
    """FINGERPRINT_CHANGED as it begins now, naming the parts that differ, and no values."""
    kind = ConditionType.FINGERPRINT_CHANGED
    return Condition(kind, f"{SENTENCES[kind]} What differs: {', '.join(parts)}.", now)


def dump(conditions: Iterable[Condition]) -> str:
    """Their form in the row: a JSON array."""
    rows = [[item.type, item.message, item.since.isoformat()] for item in conditions]
    return json.dumps(rows)


def kinds(raw: str) -> list[ConditionType]:
    """The types of those that `dump` wrote."""
    return [item.type for item in load(raw)]


@lru_cache(maxsize=1024)
def load(raw: str) -> tuple[Condition, ...]:
    """Read back what `dump` wrote. Cached: nearly every row has the same, empty list."""
    return tuple(
        Condition(ConditionType(kind), message, datetime.fromisoformat(since))
        for kind, message, since in json.loads(raw)
    )
