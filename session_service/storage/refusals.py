"""Why a connection to the database fails, in the server's words, and whether a wait can help."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

#: What the server says when it refuses this user or this database, in English, its default
#: language. libpq passes on no SQLSTATE of a failed connection, only this text (psycopg 3.3). A
#: refusal in another language counts as one that may pass.
_FINAL = re.compile(
    "password authentication failed|no password supplied|no pg_hba.conf entry"
    "|(role|database) .* does not exist|is not permitted to log in|permission denied for database"
    "|authentication failed for user|no such (user|database)"
)
#: libpq's own words about a server that is not of the kind that `target_session_attrs` asks for.
_READ_ONLY = re.compile("session is read-only|server is in hot standby mode")
_OTHER_KIND = re.compile("session is not read-only|server is not in hot standby mode")
#: How the driver begins its line about each of several attempts.
_ATTEMPT = re.compile(r"^- host: (.+?), port: (.+?), hostaddr: .+?: ", re.MULTILINE)

READ_ONLY = "it takes no writes: is it a standby?"
SILENT = "it does not answer"


class DatabaseRefused(Exception):
    """The server answers, and refuses: a wait does not help. The message is one line."""


class ReadOnlyDatabase(Exception):
    """The server takes no writes: it is a standby, or set to read-only. It may be promoted."""


@contextmanager
def of(variable: str) -> Generator[None]:
    """Begin the message of a refusal in the block with the variable that has the address."""
    try:
        yield
    except (DatabaseRefused, ReadOnlyDatabase) as error:
        raise type(error)(f"{variable}: {error}") from error


def said(error: BaseException) -> str | None:
    """Why the server refused: its own FATAL message, or that it is not of the kind that
    `target_session_attrs` asks for. None if no server answered. The rest of the driver's text is
    left out, because it may contain the password of the address.

    With several hosts the line has the reason of each host.
    """
    hosts = _hosts(str(error))
    if len(hosts) == 1:
        (reason,) = hosts.values()
        return reason
    if not any(hosts.values()):
        return None
    return "; ".join(f"{host}: {reason or SILENT}" for host, reason in hosts.items())


def is_final(error: BaseException) -> bool:
    """Whether each host refuses for a reason that lasts until somebody changes a setting."""
    return all(reason and _FINAL.search(reason) for reason in _hosts(str(error)).values())


def _hosts(text: str) -> dict[str, str | None]:
    """The reason of each host; None for a host that did not answer. If a host has several
    addresses, the first one that answered counts.
    """
    _, *attempts = _ATTEMPT.split(text)
    if not attempts:
        return {"": _reason(text)}
    found: dict[str, str | None] = {}
    for name, port, words in zip(*(attempts[at::3] for at in range(3)), strict=True):
        host = ":".join(each.strip("'") for each in (name, port) if each != "None")
        found[host] = found.get(host) or _reason(words)
    return found


def _reason(text: str) -> str | None:
    if found := re.search(r"FATAL: +(.+)", text):
        return found[1]
    if _READ_ONLY.search(text):
        return READ_ONLY
    if _OTHER_KIND.search(text):
        return "it is no standby, which target_session_attrs asks for"
    return None
