"""What a caller wants of a start, in a form that a taker-over can read back from the row."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from session_service.domain.fingerprint import Carrier
from session_service.domain.session import Continuity, Mode


@dataclass(frozen=True, slots=True)
class Recreate:
    """A container that is to be destroyed, and made anew of another spec."""

    generation: int
    """Of the container that is to go."""
    spec: str
    """What the next one is made of, as JSON."""
    source: str
    """Where that came from (`domain.effective.Source`)."""
    by: Carrier = Carrier.VOLUME
    """What brings over what is kept."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a start was asked for. `spec_hash` is None where no spec was given."""

    mode: Mode = Mode.CONTINUE
    spec_hash: str | None = None
    min_continuity: Continuity | None = None
    recreate: Recreate | None = None
    checkpoint_id: UUID | None = None
    """The one checkpoint that it is to go back to: a rollback, or a fork."""
    saved_id: UUID | None = None
    """What was there before a rollback, once that is READY: from then on the container may hold
    either."""


def dump(wish: Wish) -> str:
    """Its form in the row."""
    form: list[object] = [wish.mode, wish.spec_hash, wish.min_continuity]
    if (anew := wish.recreate) is not None:
        # Beside the hash, which earlier versions do nothing with but compare: taking over from us,
        # they read a start of another spec, destroy nothing, and say that the spec is the old one.
        form[1] = [wish.spec_hash, [anew.generation, anew.spec, anew.source, anew.by]]
    if wish.checkpoint_id is not None:
        # Storage looks for it by its place. The one before it was an earlier version's `recreate`.
        saved_id = None if wish.saved_id is None else str(wish.saved_id)
        form += [None, str(wish.checkpoint_id), saved_id]
    return json.dumps(form)


def saved(wish: Wish, checkpoint_id: UUID) -> Wish:
    """The wish of a rollback before which this was saved."""
    return replace(wish, saved_id=checkpoint_id)


def load(raw: str | None) -> Wish:
    """Read back what `dump` wrote; without any, what a plain start would want."""
    if raw is None:
        return Wish()
    mode, spec_hash, least, *more = json.loads(raw)
    anew, checkpoint_id, saved_id = [*more, None, None, None][:3]
    if isinstance(spec_hash, list):
        spec_hash, anew = spec_hash
    return Wish(
        Mode(mode),
        spec_hash,
        None if least is None else Continuity(least),
        None if anew is None else _recreate(*anew),
        None if checkpoint_id is None else UUID(checkpoint_id),
        None if saved_id is None else UUID(saved_id),
    )


def _recreate(generation: int, spec: str, source: str, *by: Any) -> Recreate:
    """Any: JSON; an earlier version knew volumes only, and said nothing."""
    return Recreate(generation, spec, source, *map(Carrier, by))
