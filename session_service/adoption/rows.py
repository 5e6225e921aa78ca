"""Reads a row of the older table: as a candidate for a session, or why it cannot be one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from session_service.adoption import mapping
from session_service.adoption.mapping import Field
from session_service.domain import spec as specs
from session_service.domain.spec import fingerprint

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

    from session_service.adoption.mapping import Meaning

#: A row of a source, by fields that have a column. NULL and "" are None.
Raw = dict[Field, str | None]

#: The contract's limit for the id of a project or user.
ID_LIMIT = 128
OLD_ID_LIMIT = 512
#: A number with up to so many digits is seconds since 1970; a longer one is milliseconds.
_SECONDS_DIGITS = 11


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The options that apply to every row of an import."""

    namespace: UUID
    """The namespace of the sessions' ids: the installation's id."""
    source: str
    """The name of the older platform; with the row's id it gives the session's id."""
    statuses: Mapping[str, Meaning]
    app: str
    """The app of machines whose row names none; "": container_service's own."""
    image: str
    """The image of rows that name none; "" if there is no default."""
    keeps_files: bool
    """Whether the machines keep their root file system over a stop."""
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that was read. If it cannot be imported, `reason` and the sentence `detail` say why,
    and the other fields hold what could be read.
    """

    old_id: str
    session_id: UUID | None = None
    project_id: str | None = None
    user_id: str | None = None
    word: str = ""
    meaning: Meaning | None = None
    machine: str | None = None
    app: str = ""
    region: str = ""
    spec: str = "{}"
    fingerprint: str = ""
    created: datetime | None = None
    updated: datetime | None = None
    active: datetime | None = None
    reason: str | None = None
    detail: str = ""


class _Unfit(Exception):
    """The row cannot be imported."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read(raw: Raw, options: RowOptions) -> Candidate:
    """Read the row. Raises nothing: the candidate says what is wrong with the row."""
    old_id = raw.get(Field.ID) or ""
    found = Candidate(shown(old_id))
    steps = (_identity, _key, _machine, _times, _status, _app, _spec)
    reason, detail = None, ""
    for step in steps:
        # The later steps also run after a step has failed, because `staging.judge` needs the key
        # and the machine of a bad row. With the key, no older row becomes the live session in its
        # place. With the machine, no superseded row that names the same machine has it destroyed.
        try:
            found = step(found, raw, options)
        except _Unfit as unfit:
            if reason is None:
                reason, detail = unfit.reason, str(unfit)
    return replace(found, reason=reason, detail=detail)


def shown(text: str) -> str:
    """Text of the older table for a report: one line, printable, of limited length."""
    cut = text if len(text) <= OLD_ID_LIMIT else text[:OLD_ID_LIMIT] + "…"
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")


def _identity(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    old_id = raw.get(Field.ID)
    if not old_id:
        raise _Unfit("ID_MISSING", "the row has no id")
    if len(old_id) > OLD_ID_LIMIT or not old_id.isprintable():
        raise _Unfit("ID_UNREADABLE", f"an id is at most {OLD_ID_LIMIT} printable characters")
    return replace(found, session_id=uuid5(options.namespace, f"{options.source}\n{old_id}"))


def _key(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    project, user = raw.get(Field.PROJECT), raw.get(Field.USER)
    for name, value in (("project", project), ("user", user)):
        if not value:
            raise _Unfit("KEY_MISSING", f"the row names no {name}")
        if len(value) > ID_LIMIT or not value.isprintable():
            raise _Unfit(
                "KEY_UNREADABLE", f"the {name}'s id must be at most {ID_LIMIT} printable characters"
            )
    return replace(found, project_id=project, user_id=user)


def _machine(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    address = raw.get(Field.URL) or ""
    named = mapping.machine_in(address, options.pattern)
    machine = (raw.get(Field.MACHINE) or "").strip() or named.machine
    found = replace(found, app=named.app)
    if machine and not mapping.is_machine_id(machine):
        raise _Unfit("MACHINE_UNREADABLE", "the row's machine id is not valid")
    if address and not machine and Field.MACHINE not in raw:
        raise _Unfit(
            "MACHINE_UNREADABLE",
            "the row's address names no machine in a known form: give --machine-pattern",
        )
    return replace(found, machine=machine or None)


def _times(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    try:
        return replace(
            found,
            created=_time(raw.get(Field.CREATED)),
            updated=_time(raw.get(Field.UPDATED)),
            active=_time(raw.get(Field.ACTIVE)),
        )
    except (ValueError, OverflowError, OSError):
        raise _Unfit("TIME_UNREADABLE", "a time must be ISO 8601, or seconds since 1970") from None


def _time(text: str | None) -> datetime | None:
    """Parse a time; one without a zone is in UTC. Raises ValueError."""
    if text is None or not text.strip():
        return None
    plain = text.strip()
    if plain.replace(".", "", 1).isdigit() and plain.isascii():
        whole = plain.partition(".")[0]
        return datetime.fromtimestamp(
            float(plain) / (1 if len(whole) <= _SECONDS_DIGITS else 1000), UTC
        )
    moment = datetime.fromisoformat(plain)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _status(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    word = raw.get(Field.STATUS) or ""
    found = replace(found, word=shown(word.strip()))
    meaning = mapping.meaning(word, options.statuses)
    if meaning is None:
        raise _Unfit(
            "STATUS_UNKNOWN",
            f"the meaning of status {found.word!r} is unknown: give --status WORD=live|ended|skip",
        )
    return replace(found, meaning=meaning)


def _app(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    app = (raw.get(Field.APP) or "").strip() or found.app or options.app
    if app and not mapping.is_app_name(app):
        raise _Unfit("APP_UNREADABLE", "the row's app name is not valid")
    region = (raw.get(Field.REGION) or "").strip()
    return replace(found, app=app, region=region if region.isalnum() and len(region) < 9 else "")


def _spec(found: Candidate, raw: Raw, options: RowOptions) -> Candidate:
    image = (raw.get(Field.IMAGE) or "").strip() or options.image
    if not image:
        raise _Unfit("IMAGE_UNKNOWN", "the row names no image: give --image")
    if len(image) > OLD_ID_LIMIT or not image.isprintable():
        raise _Unfit("IMAGE_UNREADABLE", "the row's image name is not valid")
    ephemeral = found.machine is not None and not options.keeps_files
    spec, fingerprint = _written(image, ephemeral=ephemeral)
    return replace(found, spec=spec, fingerprint=fingerprint)


@lru_cache(maxsize=1024)
def _written(image: str, *, ephemeral: bool) -> tuple[str, str]:
    """The spec as it is stored in a session's row, and its fingerprint."""
    spec: dict[str, object] = {"image": image}
    if ephemeral:
        spec["ephemeral_root_filesystem"] = True
    return specs.dump(spec), fingerprint(spec)
