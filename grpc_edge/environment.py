"""Environment variables that no service knows, so that a mistyped one does not run the default.

The variables of the two services share a prefix, and people give both services all of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "ROOST_"
#: So many letters missing, too many or changed are taken for a slip.
NEAR = 2
#: Every variable of either service that begins with PREFIX.
NAMES = frozenset(
    [
        "ROOST_ABANDONED_AFTER",
        "ROOST_AGENT_IDLE_TIMEOUT",
        "ROOST_AGENT_RETENTION",
        "ROOST_CHECKPOINT_AFTER",
        "ROOST_CHECKPOINT_BUCKET_URL",
        "ROOST_CHECKPOINT_DATABASE_LIMIT",
        "ROOST_CHECKPOINT_EVERY",
        "ROOST_CHOICE_EXPIRY",
        "ROOST_CONCURRENT_BACKGROUND",
        "ROOST_CONCURRENT_CREATES",
        "ROOST_CONCURRENT_STARTS",
        "ROOST_CONNECTION_AGE",
        "ROOST_CONTAINER_LISTEN",
        "ROOST_CONTAINER_TARGET",
        "ROOST_CONTAINER_TLS_CA",
        "ROOST_CONTAINER_TLS_CERT",
        "ROOST_CONTAINER_TLS_KEY",
        "ROOST_DATABASE_DIRECT_URL",
        "ROOST_DATABASE_URL",
        "ROOST_DECISION_RETENTION",
        "ROOST_DEEPEN_AFTER",
        "ROOST_DEFAULT_IMAGE",
        "ROOST_EVENT_RETENTION",
        "ROOST_EXPIRE_AFTER",
        "ROOST_FLY_APP",
        "ROOST_FLY_BREAKER_FAILURES",
        "ROOST_FLY_BREAKER_LONGEST",
        "ROOST_FLY_RATE_SHARE",
        "ROOST_FLY_RETRY_RATIO",
        "ROOST_FRESHNESS_WINDOW",
        "ROOST_GRACE",
        "ROOST_GRACE_PERIOD",
        "ROOST_HEALTH_LISTEN",
        "ROOST_IDLE_TIMEOUT",
        "ROOST_IDLE_WARNING",
        "ROOST_INSECURE",
        "ROOST_KILL_AT",
        "ROOST_LAG_WINDOW",
        "ROOST_LAME_DUCK",
        "ROOST_LEASE",
        "ROOST_LIVE_SESSIONS_PER_TENANT",
        "ROOST_LOG_LEVEL",
        "ROOST_METRICS_LISTEN",
        "ROOST_MIGRATE",
        "ROOST_ON_FINGERPRINT_CHANGE",
        "ROOST_PERSISTENCE",
        "ROOST_POOL_SIZE",
        "ROOST_QUEUE_LENGTH",
        "ROOST_READER_PATIENCE",
        "ROOST_RECONCILE_INTERVAL",
        "ROOST_RECONCILE_SLOTS",
        "ROOST_RETENTION_INTERVAL",
        "ROOST_SEARCH_LANGUAGE",
        "ROOST_SESSION_LISTEN",
        "ROOST_SESSION_RETENTION",
        "ROOST_START_BUDGET",
        "ROOST_STATE_LIMIT",
        "ROOST_SWEEP",
        "ROOST_SWEEP_BREAKER",
        "ROOST_SWEEP_INTERVAL",
        "ROOST_SWEEP_LIMIT",
        "ROOST_SWEEP_MIN_AGE",
        "ROOST_SWEEP_PASSES",
        "ROOST_TIER",
        "ROOST_TLS_CERT",
        "ROOST_TLS_CLIENT_CA",
        "ROOST_TLS_KEY",
        "ROOST_URL_TEMPLATE",
    ]
)
#: What Kubernetes sets for each service of a namespace whose name begins with `roost`: its host,
#: its ports by name, and the addresses of its ports.
_INJECTED = re.compile(
    r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
_PORT = re.compile(r"(tcp|udp|sctp)://")


class UnknownName(Exception):
    """A variable is not known, and its name is near to that of a known one. The message is one
    line that names both.
    """


def unknown(environment: Mapping[str, str], names: Iterable[str] = NAMES) -> list[str]:
    """The variables with PREFIX and a value that are none of `names`, without those that
    Kubernetes sets. Raises UnknownName for one that is near to one of `names`.
    """
    names = frozenset(names)
    found = []
    for name in sorted(environment):
        value = environment[name].strip()
        if not value or not name.startswith(PREFIX) or name in names or injected(name, value):
            continue
        nearest = min(names, key=lambda each: (distance(name, each), each))
        if distance(name, nearest) <= NEAR:
            raise UnknownName(f"{name} is no known variable: did you mean {nearest}?")
        found.append(name)
    return found


def injected(name: str, value: str) -> bool:
    """Whether Kubernetes sets the variable by itself, for a service that is called like us."""
    if name.endswith("_PORT") and _PORT.match(value):
        return True
    return bool(_INJECTED.fullmatch(name))


def distance(one: str, other: str) -> int:
    """How many letters to insert, remove or change until both are the same (Levenshtein)."""
    row = list(range(len(other) + 1))
    for removed, letter in enumerate(one, 1):
        before, row = row, [removed]
        for at, wanted in enumerate(other):
            row.append(min(before[at] + (letter != wanted), before[at + 1] + 1, row[at] + 1))
    return row[-1]
