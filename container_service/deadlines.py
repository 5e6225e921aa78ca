"""A deadline, handed down from call to call: the moment by which all of them must be over."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock. Below it nothing counts its own patience."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds that are left; never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() <= 0.0

    def within(self, seconds: float) -> Deadline:
        """The same deadline, or the one that many seconds from now if that is sooner."""
        return min(self, Deadline.after(seconds), key=lambda deadline: deadline.at)
