"""`claim-installation`: tell Roost that its database was moved on purpose."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from session_service.cli import command
from session_service.storage import installation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.config import Config
    from session_service.storage.installation import Binding

NAME = "claim-installation"
WARNING = """\
Delete the old database before you do this. Two databases that are both bound to the installation
destroy the machines of each other's sessions."""


def main(argv: Sequence[str]) -> int:
    """Status 0: the installation is bound to this database. 1: it needs --yes. 2: an error."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Binds the installation to the database of ROOST_DATABASE_URL, after the data "
        "was moved there on purpose: to another PostgreSQL cluster, or to another database of the "
        "same cluster. Until then replicas treat the database as a copy: they pause, end and "
        "destroy nothing by themselves.",
        epilog=WARNING,
    )
    parser.add_argument(
        "--yes", action="store_true", help="bind it; without this option, only show the binding"
    )
    yes = parser.parse_args(argv).yes
    return command.run(NAME, lambda config: _run(config, yes=yes))


async def _run(config: Config, *, yes: bool) -> int:
    async with command.database_of(config) as database:
        found = await installation.binding(database)
        say = sys.stdout.write
        say(_shown(found))
        if found.original:
            say("Nothing to do: it is bound to this database.\n")
            return 0
        say(f"This database is:    database {found.here}\n\n{WARNING}\n\n")
        if not yes:
            say(f"Nothing was changed. To bind it to this database: {NAME} --yes\n")
            return 1
        if not await installation.claim(database, found):
            return command.failed(
                NAME, "the binding was changed by another command meanwhile; run this one again"
            )
        say(
            "Bound to this database. Restart the replicas: they read the binding when they start, "
            "and then\npause, sweep and destroy again.\n"
        )
        return 0


def _shown(found: Binding) -> str:
    bound = f"It is bound to:      database {found.bound_to} (cluster/OID)"
    return f"Installation:        {found.installation_id}\n{bound}\n"
