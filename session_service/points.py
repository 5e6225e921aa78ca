"""Named points at which the process may be told to die: a device for tests, off unless armed.

    ROOST_KILL_AT=create.during:1

kills the process with SIGKILL when it passes the point for the first time. A point is a place and a
moment. The places:

- `intent`: the commit of what is going to be done (`lifecycle.takeover.Work.commit`);
- `outcome`: the commit of what came of it, and `note` of what is learned on the way
  (`storage.transitions`);
- `chunk` and `ready`: a piece of a checkpoint, and that it is whole (`storage.chunks`,
  `storage.checkpoints`);
- one for each call to the provider (`clients.containers`): `create`, `resume`, `suspend`, …, and
  `capture` and `restore` of state, `create_volume` and `delete_volume` (`clients.states`).

The moments: `before` it is begun; `during`, when the request is sent and its answer not looked at
yet, so that whether it was done is anybody's guess; `after` it is done, before anything else is.

Not armed, a point costs one comparison.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

T = TypeVar("T")

VARIABLE = "ROOST_KILL_AT"
COMMITS = ("intent", "note", "outcome", "chunk", "ready")
STATES = ("capture", "restore")
VOLUMES = ("create_volume", "delete_volume")
#: The provider's calls, by the names of `ports.Containers`; a test holds the two together.
CALLS = (
    "create", "get", "list", "wait_started", "wait_resting", "read_boot_id", "read_text", "resume",
    "suspend", "stop", "destroy", "cordon", "uncordon", "acquire_lease", "release_lease",
)  # fmt: skip
MOMENTS = ("before", "during", "after")
PLACES = (*COMMITS, *CALLS, *STATES, *VOLUMES)
NAMES = frozenset(f"{place}.{moment}" for place in PLACES for moment in MOMENTS)
#: How long a request is left to reach its server before the process dies "during" it, in s.
SENT = 0.05


class BadKillPoint(ValueError):
    """The variable names no point; the message is one line that says what it may be."""


class _Armed:
    """The one point that kills, and how often it must still be passed."""

    name: str | None = None
    left: int = 0


def arm(environment: Mapping[str, str]) -> None:
    """Arm the point that the environment names, if any. Raises BadKillPoint, and arms nothing."""
    text = environment.get(VARIABLE, "")
    if not text:
        return
    name, _, count = text.partition(":")
    if name not in NAMES or not count.isascii() or not count.isdigit() or int(count) < 1:
        raise BadKillPoint(
            f"{VARIABLE}: {text!r} is not PLACE.MOMENT:COUNT with a place of "
            f"{', '.join(PLACES)}, a moment of {', '.join(MOMENTS)} and a count from 1"
        )
    _Armed.name, _Armed.left = name, int(count)


def disarm() -> None:
    """No point kills any more."""
    _Armed.name = None


async def around(place: str, work: Awaitable[T]) -> T:
    """Do the work, with the three points of this place around it."""
    if _Armed.name is None or not _Armed.name.startswith(f"{place}."):
        return await work
    moment = _Armed.name.rpartition(".")[2]
    task = asyncio.ensure_future(work)
    if moment == "before":
        # Not yet begun: a task takes its first step only when we wait.
        _pass()
    elif moment == "during":
        await asyncio.wait({task}, timeout=SENT)
        _pass()
    answer = await task
    if moment == "after":
        _pass()
    return answer


def _pass() -> None:
    _Armed.left -= 1
    if _Armed.left == 0:
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL does not return")
