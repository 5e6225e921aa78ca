"""A fair queue: lanes within lanes, served round-robin. A data structure without any waiting.

An item has a path, such as tenant, project, user. Tenants are served round-robin, within a tenant
its projects, within a project its users, and within a user first in, first out. An item at the head
of its lane waits for at most one item of each other lane, however many items those lanes have.
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
    """An item's position in the queue, to remove it by."""

    path: Path
    number: int


@dataclass(slots=True)
class _Lane(Generic[T]):
    """Items, or lanes; the first is next. Ordered dicts: an item can be removed at any position."""

    items: OrderedDict[int, T] = field(default_factory=OrderedDict)
    lanes: OrderedDict[str, _Lane[T]] = field(default_factory=OrderedDict)
    size: int = 0


class FairQueue(Generic[T]):
    """Waiting items, by path. All paths of a queue have the same length."""

    def __init__(self) -> None:
        self._root: _Lane[T] = _Lane()
        self._numbers = count()

    def __len__(self) -> int:
        return self._root.size

    def put(self, path: Path, item: T) -> Ticket:
        """Add an item at the end of its lane; a new lane is served after the existing ones."""
        ticket = Ticket(path, next(self._numbers))
        lane = self._root
        lane.size += 1
        for name in path:
            lane = lane.lanes.setdefault(name, _Lane())
            lane.size += 1
        lane.items[ticket.number] = item
        return ticket

    def take(self, but_not: Path | None = None) -> T | None:
        """Remove and return the next item; None if the queue is empty.

        The lane of the path `but_not` is skipped, and keeps its position.
        """
        skipped = 0 if but_not is None else self.waiting(but_not)
        if len(self) == skipped:
            return None
        lane = self._root
        lane.size -= 1
        while lane.lanes:
            name = _first(lane, but_not, skipped)
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
        """Remove an item, wherever it is in the queue; False if it is not in the queue any more."""
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
        """The number of items in the lane of this path; the path () counts all items."""
        lanes = self._lanes_of(path)
        return lanes[-1].size if len(lanes) > len(path) else 0

    def has_room(self, path: Path, length: int) -> bool:
        """Whether one more item of this path may wait in a queue of about `length` items.

        A queue that has `length` items still accepts items of a lane that has less than its share,
        up to twice `length`: only the lanes that filled the queue find it full.
        """
        if len(self) < length:
            return True
        return len(self) < 2 * length and self.waiting(path) < self._share(path, length)

    def _share(self, path: Path, length: int) -> float:
        """The lane's share of `length` if every lane divides its share evenly among its lanes."""
        share, lane = float(length), self._root
        for name in path:
            share /= len(lane.lanes) + (name not in lane.lanes)
            lane = lane.lanes.get(name) or _Lane()
        return share

    def _lanes_of(self, path: Path) -> list[_Lane[T]]:
        """The lanes from the root along the path, as far as they exist."""
        lanes = [self._root]
        for name in path:
            below = lanes[-1].lanes.get(name)
            if below is None:
                break
            lanes.append(below)
        return lanes


def _first(lane: _Lane[T], but_not: Path | None, skipped: int) -> str:
    """The name of the next lane: the first, or the second if all items of the first are skipped."""
    names = iter(lane.lanes)
    name = next(names)
    if but_not and but_not[0] == name and lane.lanes[name].size == skipped:
        return next(names)
    return name
