"""Options of provider faults, chosen by the seed within the limits of the design."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.rig import ENVIRONMENT

if TYPE_CHECKING:
    import random

    from local.fly.admin import FaultOptions

#: Duration of stale reads: below ROOST_LAG_WINDOW, which exists for them.
STALE_MS = int(float(ENVIRONMENT["ROOST_LAG_WINDOW"]) * 1000 * 0.6)


def options_for(kind: str, dice: random.Random) -> FaultOptions:
    """The options of a fault. Always draws the same number of values, so seeds stay comparable."""
    times, delay_ms = dice.choice([1, 2, 3]), dice.randrange(100, 1500)
    answer = dice.choice(["408", "504", "close"])
    status = dice.choice([500, 502, 503])
    options: FaultOptions = {"times": times}
    match kind:
        case "slow_before" | "slow_after":
            options["delay_ms"] = delay_ms
        case "server_error" | "exec_fails":
            options["status"] = status
        case "unavailable":
            options = {"for_ms": delay_ms}
            if answer == "close":
                options["answer"] = "close"
        case "answer_lost":
            options["answer"] = answer  # type: ignore[typeddict-item]  # one of its literals
        case "stale_read":
            options["delay_ms"] = STALE_MS
        case "machine_vanished":
            options["times"] = 1
    return options
