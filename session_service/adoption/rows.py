"""A row of the older table, read: what is to become of it, or why it cannot be taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from session_service.adoption import machines, words
from session_service.adoption.columns import Field
from session_service.domain import spec as specs
from session_service.domain.fingerprint import fingerprint

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

    from session_service.adoption.words import Meaning

#: A row as its source gave it: the fields that have a column, NULL and "" as None.
Raw = dict[Field, str | None]

#: As in the contract: an id of a project or user.
ID_LIMIT = 128
OLD_ID_LIMIT = 512
#: Digits up to here are seconds since 1970; more are milliseconds.
_SECONDS_DIGITS = 11


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every row of an import."""

    namespace: UUID
    """What the sessions' ids are derived from: the installation's id."""
    source: str
    """The name of what the rows are of: with the row's id it gives the session's."""
    statuses: Mapping[str, Meaning]
    app: str
    """The app of machines whose row does not say; "" where container_service is to say."""
    image: str
    """The image of rows that do not say; "" where there is none."""
    keeps_files: bool
    """Whether the machines' root file systems outlive a stop."""
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that was read. `reason` is set where it cannot be taken, with a sentence in `detail`;
    what could be read of it is there all the same.
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
    """The row cannot be taken."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read(raw: Raw, terms: Terms) -> Candidate:
    """The row as a candidate. Raises nothing: what is wrong with it is in it."""
    old_id = raw.get(Field.ID) or ""
    found = Candidate(shown(old_id))
    steps = (_identity, _key, _machine, _times, _status, _app, _spec)
    reason, detail = None, ""
    for step in steps:
        # Each step stands alone, so that what is read of a bad row still protects its machine and
        # holds its key.
        try:
            found = step(found, raw, terms)
        except _Unfit as unfit:
            if reason is None:
                reason, detail = unfit.reason, str(unfit)
    return replace(found, reason=reason, detail=detail)


def shown(text: str) -> str:
    """Text of somebody else's as a report may show it: one line, printable, not too long."""
    cut = text if len(text) <= OLD_ID_LIMIT else text[:OLD_ID_LIMIT] + "…"
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")


def _identity(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
    old_id = raw.get(Field.ID)
    if not old_id:
        raise _Unfit("ID_MISSING", "the row has no id")
    if len(old_id) > OLD_ID_LIMIT or not old_id.isprintable():
        raise _Unfit("ID_UNREADABLE", f"an id is at most {OLD_ID_LIMIT} printable characters")
    return replace(found, session_id=uuid5(terms.namespace, f"{terms.source}\n{old_id}"))


def _key(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
    project, user = raw.get(Field.PROJECT), raw.get(Field.USER)
    for name, value in (("project", project), ("user", user)):
        if not value:
            raise _Unfit("KEY_MISSING", f"the row names no {name}")
        if len(value) > ID_LIMIT or not value.isprintable():
            raise _Unfit(
                "KEY_UNREADABLE", f"the {name}'s id must be at most {ID_LIMIT} printable characters"
            )
    return replace(found, project_id=project, user_id=user)


def _machine(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
    address = raw.get(Field.URL) or ""
    named = machines.in_address(address, terms.pattern)
    machine = (raw.get(Field.MACHINE) or "").strip() or named.machine
    found = replace(found, app=named.app)
    if machine and not machines.sound_machine(machine):
        raise _Unfit("MACHINE_UNREADABLE", "what the row has for a machine's id cannot be one")
    if address and not machine and Field.MACHINE not in raw:
        raise _Unfit(
            "MACHINE_UNREADABLE",
            "the row's address names no machine that is known: give --machine-pattern",
        )
    return replace(found, machine=machine or None)


def _times(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
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
    """A time; one without a zone is UTC. Raises ValueError."""
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


def _status(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
    word = raw.get(Field.STATUS) or ""
    found = replace(found, word=shown(word.strip()))
    meaning = words.meaning(word, terms.statuses)
    if meaning is None:
        raise _Unfit(
            "STATUS_UNKNOWN",
            f"nothing says what status {found.word!r} means: give --status WORD=live|ended|skip",
        )
    return replace(found, meaning=meaning)


def _app(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
    app = (raw.get(Field.APP) or "").strip() or found.app or terms.app
    if app and not machines.sound_app(app):
        raise _Unfit("APP_UNREADABLE", "what the row has for an app's name cannot be one")
    region = (raw.get(Field.REGION) or "").strip()
    return replace(found, app=app, region=region if region.isalnum() and len(region) < 9 else "")


def _spec(found: Candidate, raw: Raw, terms: Terms) -> Candidate:
    image = (raw.get(Field.IMAGE) or "").strip() or terms.image
    if not image:
        raise _Unfit("IMAGE_UNKNOWN", "the row names no image: give --image")
    if len(image) > OLD_ID_LIMIT or not image.isprintable():
        raise _Unfit("IMAGE_UNREADABLE", "what the row has for an image cannot be one")
    ephemeral = found.machine is not None and not terms.keeps_files
    spec, fingerprint = _written(image, ephemeral=ephemeral)
    return replace(found, spec=spec, fingerprint=fingerprint)


@lru_cache(maxsize=1024)
def _written(image: str, *, ephemeral: bool) -> tuple[str, str]:
    """The spec's form in the row, and its fingerprint."""
    spec: dict[str, object] = {"image": image}
    if ephemeral:
        spec["ephemeral_root_filesystem"] = True
    return specs.dump(spec), fingerprint(spec)
