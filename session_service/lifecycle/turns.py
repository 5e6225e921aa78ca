"""Turns at the provider: so many transitions at work at once, and who waits waits fairly.

A transition that waits is owned like one that works: its lease is renewed, and its time goes on.
Three kinds of places: for what somebody waits for; for background work, which has few of its own,
so that a wave of it neither takes a start's place nor is starved; and, for each app, for create
calls, since the provider lets an app create one machine a second. A fourth kind comes before all
that: `first_steps`.

A place is for asking the provider. A start gives its own back where others must be waited for: the
app's create calls, an image that is being pulled, a preview that does not answer yet.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.lifecycle.first_steps import RATE, FirstSteps
from session_service.lifecycle.places import Places

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from session_service.domain.session import Key, Session
    from session_service.lifecycle.ownership import Held
    from session_service.lifecycle.queue import Path

#: Create calls that the provider lets an app make, a second.
CREATE_RATE = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a replica's work goes on at once, and how much may wait."""

    starts: int = 64
    """Transitions at work that somebody waits for."""

    background: int = 16
    """Transitions at work that nobody waits for, beside those."""

    creates: int = 4
    """Create calls under way for each app: more than one, so that the next is there in time."""

    first_steps: int = 12
    """Starts that read what is known of their session, decide, and commit that."""

    length: int = 1024
    """Waiting for each of these; who has few waiting finds room in a queue that others filled."""

    creates_length: int = 120
    """Waiting for a create call, for each app: as many as can come in a transition's time."""


class Turn:
    """One transition's turn: an async context manager, inside of which it is at work."""

    def __init__(self, turns: Turns, places: Places, path: Path, held: Held) -> None:
        self._turns = turns
        self._places = places
        self._path = path
        self._held = held
        self._at_work = False
        #: Whether it had to wait: what was read before may not be so any more.
        self.waited = False

    async def __aenter__(self) -> Turn:
        """Wait for the turn. Raises ProviderRateLimited, ProviderUnavailable."""
        self.waited = await self._places.enter(self._path, self._held.left)
        self._at_work = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the place to the next."""
        self.step_back()

    def step_back(self) -> None:
        """Give the place to the next already: what is left to do is to wait for others."""
        if self._at_work:
            self._at_work = False
            self._places.leave(self._path)

    @asynccontextmanager
    async def creating(self, app: str) -> AsyncGenerator[None]:
        """Step back, and wait for one of the app's create calls. Raises as entering does."""
        self.step_back()
        async with self._turns.create_call(app, self._path, self._held):
            yield


class Turns:
    """All the places of one replica."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._starts = Places("starts", limits.starts, limits.length)
        self._background = Places("background work", limits.background, limits.length)
        self._first_steps = Places(
            "first steps", limits.first_steps, limits.length, RATE, moving=True
        )
        self._creates: dict[str, Places] = {}

    def check_room(self, key: Key, creates_in: str | None = None) -> None:
        """Raise ProviderRateLimited where a start could not even wait, before it is committed.

        `creates_in` is the app that it will create in, None where it will resume.
        """
        self._starts.check_room(_path(key))
        if creates_in is not None and creates_in in self._creates:
            self._creates[creates_in].check_room(_path(key))

    @property
    def figures(self) -> dict[str, tuple[int, int]]:
        """How many are at work and how many wait, by kind of place."""
        creates = {f"creates in {app}": places.figures for app, places in self._creates.items()}
        return {
            "starts": self._starts.figures,
            "background": self._background.figures,
            **creates,
        }

    def first_steps(self, key: Key) -> FirstSteps:
        """The place of a start's first steps, to be entered."""
        return FirstSteps(self._first_steps, _path(key))

    def turn(self, session: Session, held: Held) -> Turn:
        """A turn for a transition's work, to be entered."""
        places = self._background if is_background(session) else self._starts
        return Turn(self, places, _path(session.key), held)

    @asynccontextmanager
    async def create_call(self, app: str, path: Path, held: Held) -> AsyncGenerator[None]:
        """The place of one create call."""
        places = self._creates.get(app)
        if places is None:
            limits = self._limits
            what = f"creates in {app}"
            places = Places(what, limits.creates, limits.creates_length, CREATE_RATE)
            self._creates[app] = places
        try:
            await places.enter(path, held.left)
            try:
                yield
            finally:
                places.leave(path)
        finally:
            if places.idle and self._creates.get(app) is places:
                del self._creates[app]


def is_background(session: Session) -> bool:
    """Whether nobody waits for the session's transition."""
    return session.decision_id is None or session.cause is not None


def _path(key: Key) -> Path:
    return key.tenant, key.project_id, key.user_id
