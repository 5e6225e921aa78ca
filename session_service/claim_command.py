"""`python -m session_service claim-installation`: a database that was moved on purpose."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from session_service import commands
from session_service.storage import installation
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.config import Config
    from session_service.storage.installation import Binding

NAME = "claim-installation"
WARNING = """\
The old database must be gone for good before this is done. Two databases that both think themselves
the installation each destroy the machines of sessions that only the other knows."""


def main(argv: Sequence[str]) -> int:
    """Status 0 where the installation is this database's, 1 where it needs --yes, 2 on failure."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Binds the installation to the database that ROOST_DATABASE_URL leads to, "
        "after it was moved there on purpose: to another PostgreSQL cluster, or to another "
        "database of the same. Until then a copy only reports: nothing is paused, ended or "
        "destroyed by itself.",
        epilog=WARNING,
    )
    parser.add_argument(
        "--yes", action="store_true", help="do it, rather than say what it would do"
    )
    yes = parser.parse_args(argv).yes
    return commands.run(NAME, lambda config: _run(config, yes=yes))


async def _run(config: Config, *, yes: bool) -> int:
    async with Database(config.database_url, max_size=2) as database:
        found = await installation.binding(database)
        say = sys.stdout.write
        say(_shown(found))
        if found.original:
            say("Nothing to do: that is this one.\n")
            return 0
        say(f"This is another:     database {found.here}\n\n{WARNING}\n\n")
        if not yes:
            say(f"Nothing was changed. To bind it to this database: {NAME} --yes\n")
            return 1
        if not await installation.claim(database, found):
            return commands.failed(NAME, "somebody else was first; look again")
        say(
            "Bound to this database. Replicas that run learn of it when they are started anew; "
            "then they\nkeep, sweep and destroy again.\n"
        )
        return 0


def _shown(found: Binding) -> str:
    bound = f"It is bound to:      database {found.bound_to} (cluster/OID)"
    return f"Installation:        {found.installation_id}\n{bound}\n"
