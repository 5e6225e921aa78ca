"""`python -m session_service tier`: which tier a tenant has, and giving it another."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from session_service import commands, wiring
from session_service.domain.session import DEFAULT_TENANT
from session_service.domain.tiers import TIERS
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.config import Config

NAME = "tier"


def main(argv: Sequence[str]) -> int:
    """Status 0 where it was shown or set, 2 where it could not be."""
    parser = argparse.ArgumentParser(
        prog=f"python -m session_service {NAME}",
        description="Shows or sets a tenant's tier, which caps the policies of its projects. "
        "A tenant that was given none has ROOST_TIER. Live sessions are told at once: their spans "
        "follow, and nothing of them ends by it.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="get|set")
    for action, told in (("get", "show a tenant's tier"), ("set", "give a tenant a tier")):
        each = actions.add_parser(action, help=told, description=told)
        each.add_argument("tenant", help=f"without authentication all are {DEFAULT_TENANT!r}")
        if action == "set":
            each.add_argument("tier", choices=sorted(TIERS))
    arguments = parser.parse_args(argv)
    return commands.run(NAME, lambda config: _run(config, arguments))


async def _run(config: Config, arguments: argparse.Namespace) -> int:
    tenant: str = arguments.tenant
    async with Database(config.database_url, max_size=2) as database:
        policies = wiring.policies_of(config, database)
        told = ""
        if arguments.action == "set":
            count = await policies.set_tier(tenant, arguments.tier)
            told = f", and {count} live session{'' if count == 1 else 's'} told"
        # Of no project: what holds for all of the tenant's.
        tier = (await policies.project(tenant, "")).tier
        sys.stdout.write(f"{tenant}: {tier}{told}\n")
    return 0
