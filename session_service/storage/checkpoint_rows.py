"""From rows to checkpoints."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from session_service.domain.checkpoint import Checkpoint, CheckpointState, Kind, Place, Reason
from session_service.storage.tables import checkpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

CHECKPOINT_NAMES = [field.name for field in fields(Checkpoint)]
_ENUMS = [
    (CHECKPOINT_NAMES.index(name), kind)
    for name, kind in (
        ("kind", Kind),
        ("state", CheckpointState),
        ("reason", Reason),
        ("place", Place),
    )
]


def checkpoint_columns(source: sa.FromClause = checkpoints) -> list[sa.ColumnElement[Any]]:
    """The columns of `source`, in the order that `make_checkpoint` reads."""
    return [source.c[name] for name in CHECKPOINT_NAMES]


def make_checkpoint(row: Sequence[Any]) -> Checkpoint:
    """A checkpoint of its columns; what stands behind them is not read."""
    values = list(row[: len(CHECKPOINT_NAMES)])
    for position, kind in _ENUMS:
        if values[position] is not None:
            values[position] = kind(values[position])
    return Checkpoint(*values)
