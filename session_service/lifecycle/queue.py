"""A fair queue: lanes within lanes, each served in turn. A data structure; nobody waits here.

An item has a path, such as tenant, project, user. Tenants are served round-robin, within a tenant
its projects, within a project its users, and within a user first in, first out. So a storm in one
lane costs another lane no more than one turn for each lane beside it, however long the storm is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the queue."""

    path: Path
    number: int


@dataclass(slots=True)
class _Lane(Generic[T]):
    """Items, or lanes; the first is next. Ordered dicts, for what leaves leaves from anywhere."""

    items: OrderedDict[int, T] = field(default_factory=OrderedDict)
    lanes: OrderedDict[str, _Lane[T]] = field(default_factory=OrderedDict)
    size: int = 0


class FairQueue(Generic[T]):
    """Items that wait, by path. All paths of a queue are of one length."""

    def __init__(self) -> None:
        self._root: _Lane[T] = _Lane()
        self._numbers = count()

    def __len__(self) -> int:
        return self._root.size

    def put(self, path: Path, item: T) -> Ticket:
        """Let an item wait at the end of its lane; a new lane comes after those that are there."""
        ticket = Ticket(path, next(self._numbers))
        lane = self._root
        lane.size += 1
        for name in path:
            lane = lane.lanes.setdefault(name, _Lane())
            lane.size += 1
        lane.items[ticket.number] = item
        return ticket

    def take(self, but_not: Path | None = None) -> T | None:
        """The item whose turn it is, which waits no more; None where none waits.

        The lane of the path `but_not` is passed over, and keeps its turn.
        """
        passed_over = 0 if but_not is None else self.waiting(but_not)
        if len(self) == passed_over:
            return None
        lane = self._root
        lane.size -= 1
        while lane.lanes:
            name = _first(lane, but_not, passed_over)
            next_lane = lane.lanes[name]
            but_not = but_not[1:] if but_not and but_not[0] == name else None
            next_lane.size -= 1
            if next_lane.size:
                lane.lanes.move_to_end(name)
            else:
                del lane.lanes[name]
            lane = next_lane
        return lane.items.popitem(last=False)[1]

    def leave(self, ticket: Ticket) -> bool:
        """Take an item out from wherever it waits; False where it waits no more."""
        lanes = self._lanes_of(ticket.path)
        if len(lanes) <= len(ticket.path) or ticket.number not in lanes[-1].items:
            return False
        del lanes[-1].items[ticket.number]
        for lane in lanes:
            lane.size -= 1
        for name, above, below in zip(ticket.path, lanes, lanes[1:], strict=False):
            if not below.size:
                del above.lanes[name]
                break
        return True

    def waiting(self, path: Path) -> int:
        """How many items wait in the lane of this path; () is all of them."""
        lanes = self._lanes_of(path)
        return lanes[-1].size if len(lanes) > len(path) else 0

    def has_room(self, path: Path, length: int) -> bool:
        """Whether one more may wait where about `length` may.

        A full queue still takes from lanes that have less than their share of it, up to twice its
        length: it is those who filled it that find it full.
        """
        if len(self) < length:
            return True
        return len(self) < 2 * length and self.waiting(path) < self._share(path, length)

    def _share(self, path: Path, length: int) -> float:
        """What part of the length falls to the lane if each divides its own evenly."""
        share, lane = float(length), self._root
        for name in path:
            share /= len(lane.lanes) + (name not in lane.lanes)
            lane = lane.lanes.get(name) or _Lane()
        return share

    def _lanes_of(self, path: Path) -> list[_Lane[T]]:
        """The lanes from the root along the path, as far as there are any."""
        lanes = [self._root]
        for name in path:
            below = lanes[-1].lanes.get(name)
            if below is None:
                break
            lanes.append(below)
        return lanes


def _first(lane: _Lane[T], but_not: Path | None, passed_over: int) -> str:
    """The lane within whose turn it is: the first, or the second where all that waits in the first
    is passed over.
    """
    names = iter(lane.lanes)
    name = next(names)
    if but_not and but_not[0] == name and lane.lanes[name].size == passed_over:
        return next(names)
    return name
