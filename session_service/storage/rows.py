"""From rows to the domain's values: columns in the order of the dataclasses' fields."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from session_service.domain.decision import Decision
from session_service.domain.session import (
    Cause,
    Container,
    ContainerState,
    Continuity,
    EndReason,
    Mode,
    Outcome,
    PauseDepth,
    Record,
    Session,
)
from session_service.domain.states import State, Transition
from session_service.storage.tables import containers, decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from enum import Enum

    import sqlalchemy as sa


def _position(kind: type, name: str) -> int:
    return [field.name for field in fields(kind)].index(name)


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


SESSION_NAMES = _names(Session)
CONTAINER_NAMES = _names(Container)
DECISION_NAMES = _names(Decision)

_SESSION_ENUMS: list[tuple[int, type[Enum]]] = [
    (_position(Session, "state"), State),
    (_position(Session, "transition"), Transition),
    (_position(Session, "prior_state"), State),
    (_position(Session, "pause_depth"), PauseDepth),
    (_position(Session, "end_reason"), EndReason),
    (_position(Session, "cause"), Cause),
    (_position(Session, "untold_continuity"), Continuity),
]
_CONTAINER_ENUMS: list[tuple[int, type[Enum]]] = [(_position(Container, "state"), ContainerState)]
_DECISION_ENUMS: list[tuple[int, type[Enum]]] = [
    (_position(Decision, "mode"), Mode),
    (_position(Decision, "outcome"), Outcome),
    (_position(Decision, "continuity"), Continuity),
]


def _typed(row: Sequence[Any], enums: list[tuple[int, type[Enum]]]) -> list[Any]:
    """The row with its words as members of their enumerations; NULL stays None."""
    values = list(row)
    for position, kind in enums:
        if values[position] is not None:
            values[position] = kind(values[position])
    return values


def session_columns(source: sa.FromClause = sessions) -> list[sa.ColumnElement[Any]]:
    """The session's columns of `source`, in the order that `make_session` reads."""
    return [source.c[name] for name in SESSION_NAMES]


def container_columns(source: sa.FromClause = containers) -> list[sa.ColumnElement[Any]]:
    """The container's columns, labelled so that they do not clash with the session's."""
    return [source.c[name].label(f"container__{name}") for name in CONTAINER_NAMES]


def decision_columns() -> list[sa.ColumnElement[Any]]:
    """The decision's columns, in the order that `make_decision` reads."""
    return [decisions.c[name] for name in DECISION_NAMES]


def make_session(row: Sequence[Any]) -> Session:
    """A session of its columns."""
    return Session(*_typed(row[: len(SESSION_NAMES)], _SESSION_ENUMS))


def make_container(row: Sequence[Any]) -> Container:
    """A container of its columns."""
    return Container(*_typed(row[: len(CONTAINER_NAMES)], _CONTAINER_ENUMS))


def make_record(row: Sequence[Any]) -> Record:
    """A record: session columns, container columns (all NULL where there is none), the time."""
    middle = len(SESSION_NAMES)
    end = middle + len(CONTAINER_NAMES)
    container = None if row[middle] is None else make_container(row[middle:end])
    return Record(make_session(row), container, row[end])


def make_decision(row: Sequence[Any]) -> Decision:
    """A decision of its columns."""
    return Decision(*_typed(row[: len(DECISION_NAMES)], _DECISION_ENUMS))


def scalar(kind: Callable[[Any], Any]) -> Callable[[Sequence[Any]], Any]:
    """A maker for rows of one column."""
    return lambda row: kind(row[0])
