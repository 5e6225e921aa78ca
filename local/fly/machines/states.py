"""The states in which each verb is allowed, as data."""

from collections.abc import Callable, Mapping
from typing import Literal

from local.fly import errors
from local.fly.errors import ApiError

Verb = Literal["start", "stop", "suspend", "restart", "update", "destroy", "exec", "signal"]

RUNNING = frozenset({"starting", "started", "restarting", "suspending", "suspended", "stopping"})
"""States in which a process may exist."""

SETTLED = frozenset({"started", "stopped", "suspended", "failed", "destroyed"})
"""The states that a wait for `settled` accepts."""

WAITABLE = frozenset({"started", "stopped", "suspended", "destroyed", "failed", "settled"})
"""The states for which a client can wait."""

ALLOWED: Mapping[Verb, frozenset[str]] = {
    "start": frozenset({"stopped", "suspended", "failed"}),
    "stop": frozenset(
        {"created", "starting", "started", "suspending", "suspended", "failed", "restarting"}
    ),
    "suspend": frozenset({"started"}),
    "restart": frozenset({"started"}),
    "update": frozenset({"created", "started", "stopped", "suspended", "failed"}),
    "destroy": frozenset({"created", "stopped", "suspended", "failed"}),
    "exec": frozenset({"started"}),
    "signal": frozenset({"started"}),
}
"""The states in which the verb has an effect."""

NO_OP: Mapping[Verb, frozenset[str]] = {
    "stop": frozenset({"stopping", "stopped"}),
    "suspend": frozenset({"suspending", "suspended"}),
}
"""The states in which the verb answers 200 and changes nothing."""

_SPECIAL: Mapping[tuple[Verb, str], Callable[[], ApiError]] = {
    ("start", "starting"): errors.still_starting,
    ("start", "started"): errors.already_started,
    ("start", "suspending"): errors.still_active,
    ("start", "replacing"): errors.getting_replaced,
    ("update", "replacing"): errors.concurrent_update,
    ("destroy", "destroyed"): errors.machine_not_found,
}


def refusal(verb: Verb, state: str) -> ApiError | None:
    """The error for this verb in this state; None where it is allowed or has nothing to do."""
    if state in ALLOWED[verb] or state in NO_OP.get(verb, ()):
        return None
    special = _SPECIAL.get((verb, state))
    if special is not None:
        return special()
    return errors.not_destroyable() if verb == "destroy" else errors.wrong_state(verb, state)
