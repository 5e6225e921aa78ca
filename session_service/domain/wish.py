"""The wish: the request of a start, in the row's form, which another replica can read back.

`least` and `mode_of` combine a wish with the policy in force.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from session_service.domain import policy as policies
from session_service.domain.session import Continuity, Mode
from session_service.domain.spec import Carrier


@dataclass(frozen=True, slots=True)
class Recreate:
    """A container that is to be destroyed and recreated from another spec."""

    generation: int
    """The generation of the container that is to be destroyed."""
    spec: str
    """The spec of the new container, as JSON."""
    source: str
    """Where that spec came from (`domain.policy.Source`)."""
    by: Carrier = Carrier.VOLUME
    """What brings the kept state into the new container."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The request of a start. `spec_hash` is None if no spec was given."""

    mode: Mode = Mode.CONTINUE
    spec_hash: str | None = None
    min_continuity: Continuity | None = None
    recreate: Recreate | None = None
    checkpoint_id: UUID | None = None
    """The only checkpoint that it may restore, for a rollback or a fork; None: any."""
    saved_id: UUID | None = None
    """The checkpoint of the state before a rollback, once it is READY; from then on the container
    may hold either state."""


def dump(wish: Wish) -> str:
    """The wish as the row holds it: a JSON array."""
    form: list[object] = [wish.mode, wish.spec_hash, wish.min_continuity]
    if (recreate := wish.recreate) is not None:
        # In the place of the hash, which earlier versions only compare. A replica of an earlier
        # version that takes the transition over finds a start of another spec, destroys nothing,
        # and reports that the container has the old spec.
        form[1] = [wish.spec_hash, _dump_recreate(recreate)]
    if wish.checkpoint_id is not None:
        # SQL reads it by its index. The index before it had an earlier version's `recreate`.
        saved_id = None if wish.saved_id is None else str(wish.saved_id)
        form += [None, str(wish.checkpoint_id), saved_id]
    return json.dumps(form)


def saved(wish: Wish, checkpoint_id: UUID) -> Wish:
    """The wish of a rollback, with the checkpoint of the state before it."""
    return replace(wish, saved_id=checkpoint_id)


def load(raw: str | None) -> Wish:
    """Parse what `dump` wrote; None is the wish of a start without any options."""
    if raw is None:
        return Wish()
    mode, spec_hash, least, *more = json.loads(raw)
    recreate, checkpoint_id, saved_id = [*more, None, None, None][:3]
    if isinstance(spec_hash, list):
        spec_hash, recreate = spec_hash
    return Wish(
        Mode(mode),
        spec_hash,
        None if least is None else Continuity(least),
        None if recreate is None else _load_recreate(*recreate),
        None if checkpoint_id is None else UUID(checkpoint_id),
        None if saved_id is None else UUID(saved_id),
    )


def _dump_recreate(value: Recreate) -> list[object]:
    return [value.generation, value.spec, value.source, value.by]


def _load_recreate(generation: int, spec: str, source: str, *by: Any) -> Recreate:
    """Any: JSON. `by` is missing in rows of an earlier version, which knew volumes only."""
    return Recreate(generation, spec, source, *map(Carrier, by))


def least(wish: Wish, policy: policies.Policy) -> Continuity | None:
    """The least continuity that a start must give: the higher of the call's and the policy's."""
    asked = [level for level in (wish.min_continuity, policy.min_continuity) if level is not None]
    return max(asked, default=None)


def mode_of(wish: Wish, policy: policies.Policy) -> Mode:
    """The mode in force: the call's, or else the policy's. UNSPECIFIED: the user is asked."""
    if wish.mode is not Mode.UNSPECIFIED:
        return wish.mode
    if policy.persistence is policies.Persistence.EPHEMERAL:
        return Mode.FRESH
    asks = policy.persistence is policies.Persistence.ASK
    return Mode.UNSPECIFIED if asks else Mode.CONTINUE
