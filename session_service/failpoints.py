"""Failpoints: named places in the code at which a test can kill the process. Off by default.

    ROOST_KILL_AT=create.during:1

kills the process with SIGKILL when it reaches the failpoint for the first time. A failpoint is a
place and a moment. The places:

- `intent`: the commit of a transition before it is executed (`dispatch.dispatcher`);
- `outcome`: the commit of a transition's result (`dispatch.dispatcher`, `storage.session.change`);
- `note`: a commit by the worker of a transition before its outcome, or another write that leaves
  the epoch unchanged (`storage.session.change`, `storage.session.due`, `bring_up`, `bring_down`);
- `chunk` and `ready`: the commit of a piece of a checkpoint, and of the complete checkpoint
  (`storage.checkpoint.write`);
- each call of the provider (`clients.containers`): `create`, `resume`, `suspend` and the others;
  `capture` and `restore` of state, `create_volume` and `delete_volume` (`clients.states`).

The moments: `before` the call begins; `during` the call, when the request was sent and no answer
was read, so that the replica cannot know whether the call took effect; `after` the call, before any
other code runs.

A failpoint that is not armed costs one comparison.
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
#: The methods of `ports.Containers`; a test compares the two.
CALLS = (
    "create", "get", "list", "stream", "wait_started", "wait_paused", "read_boot_id", "read_text",
    "resume", "suspend", "stop", "destroy", "cordon", "uncordon", "acquire_lease", "release_lease",
)  # fmt: skip
MOMENTS = ("before", "during", "after")
PLACES = (*COMMITS, *CALLS, *STATES, *VOLUMES)
NAMES = frozenset(f"{place}.{moment}" for place in PLACES for moment in MOMENTS)
#: The pause, in s, between sending a request and the death `during` it: long enough for the request
#: to reach its server.
SENT = 0.05


class BadFailpoint(ValueError):
    """The variable names no failpoint; the message is one line that lists the valid ones."""


class _Armed:
    """The armed failpoint, and how often it must still be reached before it kills the process."""

    name: str | None = None
    left: int = 0


def arm(environment: Mapping[str, str]) -> None:
    """Arm the failpoint that ROOST_KILL_AT names, if it is set. Raises BadFailpoint."""
    text = environment.get(VARIABLE, "")
    if not text:
        return
    name, _, count = text.partition(":")
    if name not in NAMES or not count.isascii() or not count.isdigit() or int(count) < 1:
        raise BadFailpoint(
            f"{VARIABLE}: {text!r} is not PLACE.MOMENT:COUNT with a place of "
            f"{', '.join(PLACES)}, a moment of {', '.join(MOMENTS)} and a count from 1"
        )
    _Armed.name, _Armed.left = name, int(count)


async def around(place: str, work: Awaitable[T]) -> T:
    """Await `work`, with the three failpoints of this place around it."""
    if _Armed.name is None or not _Armed.name.startswith(f"{place}."):
        return await work
    moment = _Armed.name.rpartition(".")[2]
    task = asyncio.ensure_future(work)
    if moment == "before":
        # The task has not begun: asyncio runs its first step only when this coroutine awaits.
        _reach()
    elif moment == "during":
        await asyncio.wait({task}, timeout=SENT)
        _reach()
    answer = await task
    if moment == "after":
        _reach()
    return answer


def _reach() -> None:
    _Armed.left -= 1
    if _Armed.left == 0:
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL does not return")
