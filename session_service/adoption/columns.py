"""Which column of the older table holds what."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Field(StrEnum):
    """What the import reads of a row; the words are those of `--column`."""

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
    """The table does not have what is needed; the message is one line that says what it has."""


#: The usual names, most telling first; a column's case does not matter.
USUAL: Mapping[Field, tuple[str, ...]] = {
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
#: Of each of these at least one column must be there.
NEEDED: tuple[tuple[Field, ...], ...] = (
    (Field.ID,),
    (Field.PROJECT,),
    (Field.USER,),
    (Field.STATUS,),
    (Field.MACHINE, Field.URL),
    (Field.ACTIVE, Field.UPDATED, Field.CREATED),
)


def find(found: Sequence[str], told: Mapping[Field, str]) -> dict[Field, str]:
    """The column of each field that has one: as told, or else by the usual names.

    Raises BadColumns.
    """
    columns: dict[Field, str] = {}
    for field in Field:
        column = _told(found, field, told[field]) if field in told else _usual(found, field)
        if column is not None:
            columns[field] = column
    for choice in NEEDED:
        if not any(field in columns for field in choice):
            names = " or ".join(choice)
            raise BadColumns(
                f"no column for {names}; give --column {choice[0]}=NAME, one of: {_shown(found)}"
            )
    return columns


def _told(found: Sequence[str], field: Field, name: str) -> str:
    if name in found:
        return name
    raise BadColumns(f"--column {field}={name}: there is no such column, but: {_shown(found)}")


def _usual(found: Sequence[str], field: Field) -> str | None:
    by_name = {name.casefold(): name for name in reversed(found)}
    return next((by_name[name] for name in USUAL[field] if name in by_name), None)


def _shown(found: Sequence[str]) -> str:
    return ", ".join(repr(name)[1:-1] for name in found) or "none at all"
