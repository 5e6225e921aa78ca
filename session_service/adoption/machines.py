"""Which machine a row is about: from its own column, or taken out of an address."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Fly's machine ids: 14 hex digits. Nothing else in an address is taken for one.
_ID = r"(?P<machine>[0-9a-f]{14})"
_APP = r"(?P<app>[a-z0-9][a-z0-9-]{0,62})"
#: Addresses that name a machine, most telling first.
USUAL = (
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
    """A pattern that cannot say which machine an address names; the message is one line."""


@dataclass(frozen=True, slots=True)
class Named:
    """A machine that a row names; "" where it does not say."""

    machine: str = ""
    app: str = ""


def pattern(text: str) -> re.Pattern[str]:
    """A pattern of the caller's own. Raises BadPattern."""
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise BadPattern(f"is no regular expression: {error}") from None
    if "machine" not in compiled.groupindex:
        raise BadPattern("must have a group (?P<machine>…), and may have one (?P<app>…)")
    return compiled


def in_address(address: str, own: re.Pattern[str] | None) -> Named:
    """What the address says, by the caller's own pattern alone where there is one."""
    for each in USUAL if own is None else (own,):
        match = each.search(address)
        if match is not None:
            groups = match.groupdict()
            return Named(groups["machine"] or "", groups.get("app") or "")
    match = _APP_ONLY.search(address)
    return Named(app="" if match is None else match["app"])


def sound_machine(text: str) -> bool:
    """Whether it can be a machine's id."""
    return _MACHINE_ID.fullmatch(text) is not None


def sound_app(text: str) -> bool:
    """Whether it can be an app's name."""
    return _APP_NAME.fullmatch(text) is not None
