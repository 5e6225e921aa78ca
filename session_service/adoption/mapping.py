"""The meaning of the older table's columns, status words and addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Field(StrEnum):
    """The fields that the import reads from a row. `--column` names a field by its value here."""

    ID = "id"
    PROJECT = "project_id"
    USER = "user_id"
    STATUS = "status"
    MACHINE = "machine_id"
    URL = "container_url"
    APP = "app"
    REGION = "region"
    IMAGE = "image"
    CREATED = "created_at"
    UPDATED = "updated_at"
    ACTIVE = "last_active_at"


class BadColumns(Exception):
    """The table lacks a column; the message is one line that lists the columns it has."""


#: Usual names of each field's column, the most specific first. Case does not matter.
USUAL_COLUMNS: Mapping[Field, tuple[str, ...]] = {
    Field.ID: ("id", "session_id", "preview_session_id", "uuid"),
    Field.PROJECT: ("project_id", "project", "projectid", "project_uuid"),
    Field.USER: ("user_id", "user", "userid", "owner_id", "user_uuid"),
    Field.STATUS: ("status", "state", "session_status"),
    Field.MACHINE: (
        *("machine_id", "fly_machine_id", "container_id", "fly_instance_id", "instance_id"),
        *("machineid", "machine"),
    ),
    Field.URL: ("container_url", "preview_url", "machine_url", "fly_url", "url"),
    Field.APP: ("fly_app", "fly_app_name", "app_name", "app"),
    Field.REGION: ("region", "fly_region"),
    Field.IMAGE: ("image", "image_ref", "docker_image"),
    Field.CREATED: ("created_at", "created", "create_time", "inserted_at", "createdat"),
    Field.UPDATED: ("updated_at", "updated", "update_time", "modified_at", "updatedat"),
    Field.ACTIVE: (
        *("last_active_at", "last_activity_at", "last_activity", "last_active"),
        *("last_accessed_at", "last_used_at", "last_seen_at", "last_heartbeat_at", "lastactiveat"),
    ),
}
#: At least one field of each group must have a column.
NEEDED: tuple[tuple[Field, ...], ...] = (
    (Field.ID,),
    (Field.PROJECT,),
    (Field.USER,),
    (Field.STATUS,),
    (Field.MACHINE, Field.URL),
    (Field.ACTIVE, Field.UPDATED, Field.CREATED),
)


def find_columns(found: Sequence[str], given: Mapping[Field, str]) -> dict[Field, str]:
    """The column of each field: the one that is given, or else one with a usual name.

    Fields without a column are absent. Raises BadColumns.
    """
    columns: dict[Field, str] = {}
    for field in Field:
        column = _given(found, field, given[field]) if field in given else _usual(found, field)
        if column is not None:
            columns[field] = column
    for choice in NEEDED:
        if not any(field in columns for field in choice):
            names = " or ".join(choice)
            raise BadColumns(
                f"no column for {names}; give --column {choice[0]}=NAME, one of: {_shown(found)}"
            )
    return columns


def _given(found: Sequence[str], field: Field, name: str) -> str:
    if name in found:
        return name
    raise BadColumns(f"--column {field}={name}: no such column; there are: {_shown(found)}")


def _usual(found: Sequence[str], field: Field) -> str | None:
    by_name = {name.casefold(): name for name in reversed(found)}
    return next((by_name[name] for name in USUAL_COLUMNS[field] if name in by_name), None)


def _shown(found: Sequence[str]) -> str:
    return ", ".join(repr(name)[1:-1] for name in found) or "none at all"


class Meaning(StrEnum):
    """The meaning of a status of the older platform."""

    RUNNING = "RUNNING"
    """Live. An import that does not ask the provider (`--offline`) takes the machine as running;
    the session's first start probes it."""
    SUSPENDED = "SUSPENDED"
    """Live, paused with its memory."""
    STOPPED = "STOPPED"
    """Live, paused with its files only."""
    ENDED = "ENDED"
    """Over."""
    LEFT_OUT = "LEFT_OUT"
    """Not to be imported."""


#: Usual words for a status. Ambiguous words, such as "failed", "error" and "pending", are not here:
#: the operator gives their meaning with `--status`.
USUAL_STATUSES: Mapping[str, Meaning] = {
    **dict.fromkeys(
        ("active", "running", "run", "started", "starting", "ready", "live", "up", "idle", "open"),
        Meaning.RUNNING,
    ),
    **dict.fromkeys(
        ("paused", "pausing", "suspended", "suspending", "sleeping", "hibernated", "hibernating"),
        Meaning.SUSPENDED,
    ),
    **dict.fromkeys(("stopped", "stopping", "inactive"), Meaning.STOPPED),
    **dict.fromkeys(
        (
            *("ended", "terminated", "destroyed", "deleted", "expired", "closed", "archived"),
            *("completed", "finished", "cancelled", "canceled", "removed"),
        ),
        Meaning.ENDED,
    ),
}
#: The meanings that `--status WORD=MEANING` accepts.
STATUS_OPTIONS: Mapping[str, Meaning] = {
    "live": Meaning.RUNNING,
    "ended": Meaning.ENDED,
    "skip": Meaning.LEFT_OUT,
}


def meaning(word: str, given: Mapping[str, Meaning]) -> Meaning | None:
    """The meaning that is given for the word, or else the usual one; None if there is neither."""
    plain = word.strip().casefold()
    return given.get(plain) or USUAL_STATUSES.get(plain)


#: A machine id of Fly is 14 hex digits, so that no other part of an address is taken for an id.
_ID = r"(?P<machine>[0-9a-f]{14})"
_APP = r"(?P<app>[a-z0-9][a-z0-9-]{0,62})"
#: Addresses that name a machine, the most specific first.
USUAL_ADDRESSES = (
    re.compile(
        rf"//{_APP}\.fly\.dev\b.*\bfly[-_]force[-_]instance[-_]id(?:=|:|%3[DdAa])\s*{_ID}\b"
    ),
    re.compile(rf"\bfly[-_]force[-_]instance[-_]id(?:=|:|%3[DdAa])\s*{_ID}\b"),
    re.compile(rf"//{_ID}\.{_APP}\.(?:fly\.dev|localhost)\b"),
    re.compile(rf"(?://|^){_ID}\.vm\.{_APP}\.internal\b"),
)
_APP_ONLY = re.compile(rf"//(?:[a-z0-9-]+\.)?{_APP}\.fly\.dev\b")
_MACHINE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_APP_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class BadPattern(Exception):
    """A `--machine-pattern` that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class NamedMachine:
    """The machine and the app that an address names; each is "" if the address does not name it."""

    machine: str = ""
    app: str = ""


def machine_pattern(text: str) -> re.Pattern[str]:
    """Compile a `--machine-pattern`. Raises BadPattern."""
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise BadPattern(f"is no regular expression: {error}") from None
    if "machine" not in compiled.groupindex:
        raise BadPattern("must have a group (?P<machine>…), and may have one (?P<app>…)")
    return compiled


def machine_in(address: str, pattern: re.Pattern[str] | None) -> NamedMachine:
    """The machine and the app that the address names. If a pattern is given, only the pattern finds
    a machine. An address in which no machine is found can still name an app of fly.dev.
    """
    for each in USUAL_ADDRESSES if pattern is None else (pattern,):
        match = each.search(address)
        if match is not None:
            groups = match.groupdict()
            return NamedMachine(groups["machine"] or "", groups.get("app") or "")
    match = _APP_ONLY.search(address)
    return NamedMachine(app="" if match is None else match["app"])


def is_machine_id(text: str) -> bool:
    """Whether the text can be a machine's id."""
    return _MACHINE_ID.fullmatch(text) is not None


def is_app_name(text: str) -> bool:
    """Whether the text can be an app's name."""
    return _APP_NAME.fullmatch(text) is not None
