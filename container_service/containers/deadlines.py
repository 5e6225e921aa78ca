"""Deadlines: the time by which a call and everything that it calls must end."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, passed down unchanged from the RPC to the HTTP request."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds that are left; never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining() <= 0.0

    def within(self, seconds: float) -> Deadline:
        """The same deadline, or `seconds` from now if that is sooner."""
        return min(self, Deadline.after(seconds), key=lambda deadline: deadline.at)
