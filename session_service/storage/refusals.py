"""Why a connection to the database fails, in the server's words, and whether a wait can help."""

from __future__ import annotations

import re

#: What the server says when it refuses this user or this database, in English, its default
#: language. libpq passes on no SQLSTATE of a failed connection, only this text (psycopg 3.3). In
#: another language the refusal is taken for one that may pass.
_FINAL = re.compile(
    "password authentication failed|no password supplied|no pg_hba.conf entry"
    "|(role|database) .* does not exist|is not permitted to log in|permission denied for database"
    "|authentication failed for user"
)


class DatabaseRefused(Exception):
    """The server answers, and refuses: a wait does not help. The message is one line."""


class ReadOnlyDatabase(Exception):
    """The server takes no writes: it is a standby, or set to read-only. It may be promoted."""


def said(error: BaseException) -> str | None:
    """The server's own FATAL message in the driver's text; None if it did not answer. The rest of
    that text may contain the password of the address.
    """
    found = re.search(r"FATAL: +(.+)", str(error))
    return found[1] if found else None


def is_final(message: str) -> bool:
    """Whether the server refuses for a reason that lasts until somebody changes a setting."""
    return bool(_FINAL.search(message))
