"""What a caller wants of a start, in a form that a taker-over can read back from the row."""

from __future__ import annotations

import json
from dataclasses import dataclass

from session_service.domain.session import Continuity, Mode


@dataclass(frozen=True, slots=True)
class Wish:
    """What a start was asked for. `spec_hash` is None where no spec was given."""

    mode: Mode = Mode.CONTINUE
    spec_hash: str | None = None
    min_continuity: Continuity | None = None


def dump(wish: Wish) -> str:
    """Its form in the row."""
    return json.dumps([wish.mode, wish.spec_hash, wish.min_continuity])


def load(raw: str | None) -> Wish:
    """Read back what `dump` wrote; without any, what a plain start would want."""
    if raw is None:
        return Wish()
    mode, spec_hash, least = json.loads(raw)
    return Wish(Mode(mode), spec_hash, None if least is None else Continuity(least))
